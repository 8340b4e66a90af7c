"""Both papers together: backbones made without data by rounding and by zero-shot quantization, then tuned alike.

A backbone is a bare model at one scheme, with outliers, made by a method of ``lowbit zeroshot`` (`rtn` only rounds).
Each is tuned for each task as benchmarks/tuning_quality.py tunes ours, at the rate that its trials chose, and dev is
read once. Rows go to benchmarks/results/zeroshot_backbone.jsonl; those that are there already are not made again.

    LOWBIT_DATA=/path/to/data python benchmarks/zeroshot_backbone.py --generator /path/to/lm --work build/backbones
"""

import argparse
import json
from pathlib import Path

from rows import RESULTS, Row, append, done, read_rows
from training_device import training_device
from tuning_quality import BATCH_SIZE, CHOSEN, DROPOUT, EPOCHS, FILE, best_rate, remove, task_data
from zeroshot_quality import setting_of, taken

import lowbit
from lowbit.demo import minilm_folder
from lowbit.zeroshot import METHODS

RESULT = RESULTS / "zeroshot_backbone.jsonl"
KEY = ("model", "scheme", "backbone", "options", "task", "seed", "rate", "precision", "setting")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=minilm_folder(), help="folder of the float model; default the demo's MiniLM")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--generator", type=Path, help="folder of a causal language model; default a built-in one")
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    parser.add_argument("--backbones", nargs="+", choices=list(METHODS), default=["rtn", "random", "zsaq"])
    parser.add_argument("--scheme", default="w2", help="width of the backbone")
    parser.add_argument("--options", type=json.loads, default={}, help='fields of ZeroShotOptions, as {"rho": 0.1}')
    parser.add_argument("--tasks", nargs="+", default=["cola", "stsb", "sst2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps backbones between calls")
    arguments = parser.parse_args()
    rate = best_rate(read_rows(FILE), "MiniLM-L6", "outliers", arguments.scheme)
    for method in arguments.backbones:
        for task in arguments.tasks:
            for seed in arguments.seeds:
                run(arguments, method, task, seed, rate)


def run(arguments: argparse.Namespace, method: str, task: str, seed: int, rate: float) -> None:
    """Tune one backbone for one task, unless its row is there."""
    chosen = taken(arguments.options, method)
    generator = taken({"generator": arguments.generator}, method)
    row: Row = {
        "model": arguments.name,
        "scheme": arguments.scheme,
        "backbone": method,
        "options": chosen,
        "generator": arguments.generator.name if arguments.generator and generator else None,
        "task": task,
        "seed": seed,
        "rate": rate,
        "epochs": EPOCHS[task],
        "setting": setting_of(method),
        **training_device(),
    }
    if done(RESULT, row, KEY):
        return
    data = task_data(task, arguments.data_dir)
    backbone, output = arguments.work / f"{method}-{arguments.scheme}", arguments.work / "tuned"
    if not backbone.exists():
        options = lowbit.ZeroShotOptions(**generator, **chosen)
        lowbit.zeroshot(arguments.model, backbone, f"{arguments.scheme}o0.5", method=method, options=options)
    remove(output)
    result = lowbit.tune(
        backbone,
        output,
        data,
        options=lowbit.TuneOptions(
            epochs=EPOCHS[task],
            batch_size=BATCH_SIZE,
            seed=seed,
            learning_rate=rate,
            dropout=DROPOUT,
            save_steps=0,
            cache=row["precision"],
            **CHOSEN["outliers"],
        ),
    )
    found = {"metric": data.primary, "score": result.score, "trained_share": round(result.trained_share, 6)}
    append(RESULT, row | found | {"seconds": round(result.seconds, 1)})
    remove(output)


if __name__ == "__main__":
    main()
