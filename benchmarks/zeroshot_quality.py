"""Quality of zero-shot quantization beside every method that needs no data, on real GLUE tasks.

Rows go to benchmarks/results/zeroshot_quality.jsonl. A `trial` reads no data at all: it says how near the result comes
to its teacher on generated texts. A `held-out` is scored on 2,000 training rows, and options are chosen by it. A
`final` reads dev once. Both tell the metric of the task, and the divergence of the logits from the teacher's. The
teachers are models fine-tuned for the tasks, `TASK-full-fp32-0` in the folder that benchmarks/tuning_quality.py keeps.
Rows that are there already are not made again, and a run that was stopped goes on.

    LOWBIT_DATA=/path/to/data python benchmarks/zeroshot_quality.py --teachers build/models --generator /path/to/lm \\
        --work build/zeroshot
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rows import RESULTS, Row, append, done
from training_device import training_device
from tuning_quality import DROPOUT, SPLITS, remove
from zeroshot_tables import IN_PAIRS

import lowbit
from lowbit.adapter import load
from lowbit.checkpoint import load_tokenizer, measure
from lowbit.data import TaskData, encode, glue_data
from lowbit.loop import default_device, predict_logits
from lowbit.losses import logit_distance
from lowbit.metrics import score
from lowbit.scoring import decide
from lowbit.zeroshot import METHODS, parse_recipe

FILE = RESULTS / "zeroshot_quality.jsonl"
PAIRS = {"stsb": 1.0, "mrpc": 1.0, "rte": 1.0, "qqp": 1.0, "mnli": 1.0, "qnli": 1.0}  # sentence pairs; others have none
MAX_LENGTH = 128
KEY = ("kind", "model", "task", "method", "scheme", "strategy", "levels", "seed", "options", "generator", "precision")
KEY += ("teacher_dropout", "setting")
# What has changed since the first rows: which hidden states are compared, what a language model is read for, pairs, and
# on what the best state is chosen.
SETTING = "all layers; written in the target's words, half strays; second texts repeat; kept by words, tokens and text"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teachers", type=Path, required=True, help="folder of the fine-tuned models")
    parser.add_argument("--name", default="MiniLM-L6", help="what they were made of")
    parser.add_argument("--generator", type=Path, help="folder of a causal language model; default a built-in one")
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    parser.add_argument("--kind", choices=["trial", "held-out", "final"], nargs="+", default=["final"])
    parser.add_argument("--tasks", nargs="+", default=["sst2", "stsb", "cola"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--schemes", nargs="+", default=["w2a8", "w4a8"])
    parser.add_argument("--strategy", default="mse", help="how the grids are found at the start")
    parser.add_argument("--levels", default="", help="of the grid; default that of the width")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--options",
        type=json.loads,
        default={},
        help='fields of ZeroShotOptions, as {"rho": 0.1}; each method gets those that it takes',
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for models while they are measured")
    arguments = parser.parse_args()
    lowbit.ZeroShotOptions(**arguments.options)  # raises for what no method takes
    for task in arguments.tasks:
        for scheme in arguments.schemes:
            for method in arguments.methods:
                for seed in arguments.seeds:
                    for kind in arguments.kind:
                        run(arguments, kind, task, method, scheme, seed)


def run(arguments: argparse.Namespace, kind: str, task: str, method: str, scheme: str, seed: int) -> None:
    """Make one row, unless it is there."""
    takes = METHODS[method].takes
    generator = arguments.generator if "generator" in takes else None
    row: Row = {
        "kind": kind,
        "model": arguments.name,
        "task": task,
        "method": method,
        "scheme": scheme,
        "strategy": arguments.strategy,
        "levels": arguments.levels,
        "seed": seed,
        "options": taken(arguments.options, method),
        "generator": None if generator is None else generator.name,
        "teacher_dropout": DROPOUT,
        "setting": SETTING + (IN_PAIRS if task in PAIRS else ""),
        **training_device(),
    }
    if done(FILE, row, KEY):
        return
    teacher, output = arguments.teachers / f"{task}-full-fp32-0", arguments.work / f"{task}-{method}-{scheme}-{seed}"
    needs_train = method == "real" or kind == "held-out"
    data = glue_data(task, arguments.data_dir, train=needs_train, splits=SPLITS.get(task), seed=0)
    options = {"pairs": PAIRS.get(task, 0.0), "generator": generator, "seed": seed, **row["options"]}
    remove(output)
    result = lowbit.zeroshot(
        teacher,
        output,
        recipe_of(scheme, strategy=arguments.strategy, levels=arguments.levels),
        method=method,
        texts=training_texts(data) if method == "real" else None,
        options=lowbit.ZeroShotOptions(**taken(options, method)),
    )
    row |= {
        "start_gap": result.start_gap,
        "gap": result.gap,
        "steps": result.steps,
        "counts": dict(result.counts),
        "seconds": round(result.seconds, 1),
        "effective_bits": round(measure(output).effective_bits, 4),
    }
    if kind == "held-out":
        data = held_out(data)
    append(FILE, row | ({} if kind == "trial" else on_dev(teacher, output, data)))
    remove(output)


def recipe_of(scheme: str, **start: str) -> lowbit.Recipe:
    """The recipe of a scheme in short form whose grids start as fields of Scheme say."""
    recipe = parse_recipe(scheme)
    return dataclasses.replace(recipe, scheme=dataclasses.replace(recipe.scheme, **start))


def setting_of(method: str) -> str | None:
    """The setting of a method that trains; others, and the float model, have none."""
    return SETTING if method in METHODS and METHODS[method].source else None


def taken(options: dict[str, Any], method: str) -> dict[str, Any]:
    """Those of the options that a method takes."""
    return {name: value for name, value in options.items() if name in METHODS[method].takes}


def held_out(data: TaskData) -> TaskData:
    """The same with 2,000 of the training rows in the place of dev; the teachers have seen some of them."""
    rows = data.training_rows()
    rows = rows.sample(min(14_000, len(rows)), 1)
    return dataclasses.replace(data, evaluations={"held out": rows.split(min(2_000 / len(rows), 0.5), 1)[1]})


def on_dev(teacher: Path, output: Path, data: TaskData) -> Row:
    """The metric of the task of teacher and result, and how far the logits are apart."""
    tokenizer = load_tokenizer(output)
    dev = next(iter(data.evaluations.values()))
    assert dev.labels is not None
    rows = encode(dev, tokenizer, MAX_LENGTH)
    scores, logits = [], []
    for folder in (teacher, output):
        found = predict_logits(load(folder).to(default_device()), tokenizer, rows)
        predictions = decide(found, data.label_names is None).tolist()
        scores.append(score(data.metrics, predictions, dev.labels)[data.primary])
        logits.append(found)
    return {
        "metric": data.primary,
        "teacher_score": scores[0],
        "score": scores[1],
        "distance": float(logit_distance(logits[1], logits[0])),
    }


def training_texts(data: TaskData) -> list[str | tuple[str, str]]:
    """The texts of the training rows, without their labels."""
    train = data.training_rows()
    return list(train.texts if train.pairs is None else zip(train.texts, train.pairs, strict=True))


if __name__ == "__main__":
    main()
