"""Perplexity of a causal language model that was quantized without data, by every method.

The model writes the texts of the methods that need a language model itself, unless `--generator` names another one;
`real` reads the Wikipedia sample, on which opt-mini was trained. Rows go to results/zeroshot_perplexity.jsonl;
those that are there already are not made again.

    LOWBIT_DATA=/path/to/data python benchmarks/zeroshot_perplexity.py --model /path/to/opt-mini --work build/opt
"""

import argparse
import json
import os
from pathlib import Path

from perplexity import WIKIPEDIA, WIKITEXT
from rows import RESULTS, Row, append, done
from training_device import training_device
from tuning_quality import remove
from zeroshot_quality import recipe_of, setting_of, taken

import lowbit
from lowbit.checkpoint import measure
from lowbit.data import read_text
from lowbit.zeroshot import METHODS

FILE = RESULTS / "zeroshot_perplexity.jsonl"
WINDOW = 256
KEY = ("model", "scheme", "strategy", "method", "options", "generator", "seed", "precision", "setting")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the float model")
    parser.add_argument("--name", default="opt-mini", help="its name in the table")
    parser.add_argument("--generator", type=Path, help="folder of a causal language model; default the model itself")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("LOWBIT_DATA"), help="folder with lm/; default LOWBIT_DATA"
    )
    parser.add_argument("--methods", nargs="+", choices=["float", *METHODS], default=["float", *METHODS])
    parser.add_argument("--schemes", nargs="+", default=["w2a8", "w4a8"])
    parser.add_argument("--strategy", default="mse", help="how the grids are found at the start")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--options", type=json.loads, default={}, help='fields of ZeroShotOptions, as {"rho": 0.1}')
    parser.add_argument("--work", type=Path, required=True, help="folder for models while they are measured")
    arguments = parser.parse_args()
    lowbit.ZeroShotOptions(**arguments.options)  # raises for what no method takes
    for method in arguments.methods:
        for scheme in ["float"] if method == "float" else arguments.schemes:
            for seed in arguments.seeds:
                run(arguments, method, scheme, seed)


def run(arguments: argparse.Namespace, method: str, scheme: str, seed: int) -> None:
    """Make one row, unless it is there."""
    given = {"generator": arguments.generator or arguments.model, "seed": seed, **arguments.options}
    options = {} if method == "float" else taken(given, method)
    generator = options.get("generator")
    row: Row = {
        "model": arguments.name,
        "scheme": scheme,
        "strategy": None if method == "float" else arguments.strategy,
        "method": method,
        "options": {name: value for name, value in arguments.options.items() if name in options},
        "generator": None if generator is None else generator.name,
        "seed": seed,
        "text": "WikiText-2 test",
        "window": WINDOW,
        "setting": setting_of(method),
        **training_device(),
    }
    if done(FILE, row, KEY):
        return
    output = arguments.model if method == "float" else arguments.work / f"{method}-{scheme}-{seed}"
    if method != "float":
        remove(output)
        texts = paragraphs(arguments.data_dir / "lm" / WIKIPEDIA) if method == "real" else None
        recipe = recipe_of(scheme, strategy=arguments.strategy)
        chosen = lowbit.ZeroShotOptions(**options)
        result = lowbit.zeroshot(arguments.model, output, recipe, method=method, texts=texts, options=chosen)
        row |= {"start_gap": result.start_gap, "gap": result.gap, "steps": result.steps}
        row |= {"seconds": round(result.seconds, 1), "effective_bits": round(measure(output).effective_bits, 4)}
    found = lowbit.perplexity(output, arguments.data_dir / "lm" / WIKITEXT, window=WINDOW, stride=WINDOW)
    append(FILE, row | {"perplexity": found.perplexity})
    if method != "float":
        remove(output)


def paragraphs(path: Path) -> list[str]:
    """Lines of a text that are not blank."""
    return [line for line in read_text(path).splitlines() if line.strip()]


if __name__ == "__main__":
    main()
