"""Quality of stage 2 beside full fine-tuning and quantization after it, on real GLUE tasks.

One row per run is appended to benchmarks/results/quality.jsonl; rows that are there already are not run again, so an
interrupted study continues. The recipe is fixed before dev is read: no option is searched here.

    LOWBIT_DATA=/path/to/data python benchmarks/quality.py --model /path/to/MiniLM
"""

import argparse
import tempfile
from pathlib import Path

from rows import RESULTS, append, done

import lowbit
from lowbit.checkpoint import measure
from lowbit.data import glue_data
from lowbit.loop import default_device, use_bf16

FILE = RESULTS / "quality.jsonl"
TASKS = {"sst2": {"train_rows": 12_000, "epochs": 2}, "stsb": {"train_rows": None, "epochs": 3}}
KEY = ("model", "task", "method", "scheme", "seed", "epochs", "rows", "precision")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the float model")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--schemes", nargs="+", default=["w4", "w3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", help="folder that keeps models between calls; default a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        for task in arguments.tasks:
            for seed in arguments.seeds:
                run_task(arguments, task, seed, work)


def run_task(arguments: argparse.Namespace, task: str, seed: int, work: Path) -> None:
    """Full fine-tuning, then per scheme its quantized copy and the tuned backbone."""
    settings = TASKS[task]
    data = glue_data(task, arguments.data_dir, train_rows=settings["train_rows"], seed=0)
    base = {
        "model": arguments.name,
        "task": task,
        "metric": data.primary,
        "seed": seed,
        "epochs": settings["epochs"],
        "rows": len(data.train),
        "precision": "bf16" if use_bf16("auto", default_device()) else "fp32",
    }
    options = lowbit.TuneOptions(epochs=settings["epochs"], seed=seed)
    full = work / f"{task}-{seed}-full"
    row = base | {"method": "full", "scheme": "fp32"}
    if not done(FILE, row, KEY) or not full.exists():
        result = lowbit.tune(arguments.model, full, data, method="full", options=options)
        append(FILE, row | outcome(result) | {"effective_bits": 32.0, "model_bits": 32.0})
    for scheme in arguments.schemes:
        row = base | {"method": "ptq", "scheme": scheme}
        if not done(FILE, row, KEY):
            quantized = lowbit.quantize(full, scheme, output=work / f"{task}-{seed}-ptq-{scheme}")
            scores = lowbit.evaluate(quantized.path, data)
            first = next(iter(scores.values()))
            append(
                FILE,
                row
                | {"score": first[data.primary], "trained_parameters": 0, "trained_share": 0.0}
                | bits(quantized.path),
            )
        row = base | {"method": "outliers", "scheme": scheme}
        if not done(FILE, row, KEY):
            backbone = work / f"backbone-{scheme}-{task}-{seed}"
            if not backbone.exists():
                lowbit.quantize(arguments.model, scheme, output=backbone)
            result = lowbit.tune(backbone, work / f"{task}-{seed}-{scheme}", data, options=options)
            append(FILE, row | outcome(result) | bits(backbone))


def outcome(result) -> dict:
    """Fields of a row that a tuning run gives."""
    return {
        "score": result.score,
        "trained_parameters": sum(result.trained.values()),
        "trained_share": round(result.trained_share, 6),
        "trained": result.trained,
        "seconds": round(result.seconds, 1),
    }


def bits(path: Path) -> dict:
    """Fields of a row that the files on disk give."""
    size = measure(path)
    return {"effective_bits": round(size.effective_bits, 4), "model_bits": round(size.model_bits, 4)}


if __name__ == "__main__":
    main()
