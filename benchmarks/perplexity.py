"""Perplexity of a causal language model in float and in few bits, and of low-bit backbones tuned on plain text.

One row per run is appended to benchmarks/results/perplexity.jsonl; rows that are there already are not run again, so an
interrupted study continues.

    LOWBIT_DATA=/path/to/data python benchmarks/perplexity.py --model /path/to/opt-mini
"""

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from rows import RESULTS as FOLDER
from rows import append, done

import lowbit
from lowbit.checkpoint import measure
from lowbit.data import text_data
from lowbit.loop import default_device, use_bf16

RESULTS = FOLDER / "perplexity.jsonl"
WIKITEXT = "wikitext-2/wiki.test.raw"
WIKIPEDIA = "wikipedia-2015-sample.txt"
# Window and stride: the usual chunks, all positions of opt-mini, and what it was trained on, moved by half of it.
WINDOWS = [(256, 256), (512, 512), (128, 64)]
TRAIN, HELD_OUT = 600_000, 100_000  # characters: the first and the last of the Wikipedia sample
KEY = ("model", "text", "method", "scheme", "window", "stride", "seed", "precision")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the float model")
    parser.add_argument("--name", default="opt-mini", help="its name in the table")
    parser.add_argument(
        "--data-dir", default=os.environ.get("LOWBIT_DATA"), help="folder with lm/; default LOWBIT_DATA"
    )
    parser.add_argument("--tuned", nargs="*", default=["w2", "w3"], help="schemes to tune")
    parser.add_argument("--untuned", nargs="*", default=["float", "w8", "w4", "w3", "w2"], help="schemes to measure")
    arguments = parser.parse_args()
    texts = Path(arguments.data_dir) / "lm"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train, held_out = split(texts / WIKIPEDIA, work)
        for scheme in arguments.tuned:
            tune(arguments, scheme, work, train, held_out)
        for scheme in ("float", *arguments.tuned):
            score(arguments, scheme, work, held_out, "held-out Wikipedia", 128, 64)
        for window, stride in WINDOWS:
            for scheme in arguments.untuned:
                score(arguments, scheme, work, texts / WIKITEXT, "WikiText-2 test", window, stride)


def split(sample: Path, work: Path) -> tuple[Path, Path]:
    """Text to train on, and text that is not: two ends of the sample."""
    text = sample.read_text(encoding="utf-8")
    for name, part in (("train.txt", text[:TRAIN]), ("held-out.txt", text[-HELD_OUT:])):
        (work / name).write_text(part, encoding="utf-8")
    return work / "train.txt", work / "held-out.txt"


def tune(arguments: argparse.Namespace, scheme: str, work: Path, train: Path, held_out: Path) -> None:
    """A backbone tuned for one epoch in blocks of 128 tokens; nothing is searched."""
    row = base(arguments.name, "outliers", scheme) | {"text": "held-out Wikipedia", "window": 128, "stride": 64}
    if done(RESULTS, row, KEY):
        return
    backbone = model(arguments, scheme, work)
    options = lowbit.TuneOptions(epochs=1)
    result = lowbit.tune(backbone, work / f"{scheme}-tuned", text_data(train, held_out), options=options)
    trained = {
        "trained": result.trained,
        "trained_parameters": sum(result.trained.values()),
        "trained_share": round(result.trained_share, 6),
        "epochs": options.epochs,
        "rows": result.rows,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
    }
    append(RESULTS, row | result.metrics["eval"] | trained | bits(backbone))


def score(
    arguments: argparse.Namespace, scheme: str, work: Path, path: Path, text: str, window: int, stride: int
) -> None:
    """The float model or an untuned backbone on a text."""
    row = base(arguments.name, "untuned", scheme) | {"text": text, "window": window, "stride": stride}
    if done(RESULTS, row, KEY):
        return
    folder = model(arguments, scheme, work)
    found = lowbit.perplexity(folder, path, window=window, stride=stride)
    width = {"effective_bits": 16.0, "model_bits": 16.0} if scheme == "float" else bits(folder)
    append(RESULTS, row | dataclasses.asdict(found) | width)


def model(arguments: argparse.Namespace, scheme: str, work: Path) -> Path:
    """The float model, or its backbone."""
    if scheme == "float":
        return Path(arguments.model)
    if not (work / scheme).exists():
        lowbit.quantize(arguments.model, scheme, output=work / scheme)
    return work / scheme


def base(name: str, method: str, scheme: str) -> dict:
    """Fields that every row has."""
    precision = "bf16" if use_bf16("auto", default_device()) else "fp32"
    return {"model": name, "method": method, "scheme": scheme, "seed": 0, "precision": precision}


def bits(path: Path) -> dict:
    """Fields of a row that the files on disk give."""
    size = measure(path)
    return {"effective_bits": round(size.effective_bits, 4), "model_bits": round(size.model_bits, 4)}


if __name__ == "__main__":
    main()
