"""Quality of stage 2 beside every baseline, on real GLUE tasks, and the learning rates that each of them was given.

Three kinds of rows go to benchmarks/results/tuning_quality.jsonl. A `trial` trains on some of the training rows and is
scored on a tenth of them that is held out, of SST-2 whole sentences; it never reads dev. An `option` is a trial of ours
with one option changed, at the best rate without it. A `final` trains on all rows at the rate whose trials were best on
the average of two tasks, and reads dev once. Every method gets the same number of trials, the same rows in the same
order and the same schedule. Rows that are there already are not made again.

    LOWBIT_DATA=/path/to/data python benchmarks/tuning_quality.py --work build/models
"""

import argparse
import dataclasses
import math
import shutil
import statistics
import time
from pathlib import Path

from hold_out import hold_out_sentences
from rows import RESULTS, Row, append, done, read_rows
from training_device import training_device

import lowbit
from lowbit.adapter import load
from lowbit.checkpoint import load_tokenizer, measure
from lowbit.data import TaskData, glue_data
from lowbit.demo import minilm_folder
from lowbit.loop import default_device
from lowbit.scoring import score_model

FILE = RESULTS / "tuning_quality.jsonl"
SEARCHED = ("sst2", "stsb")  # the tasks on which rates are chosen; the others take them as they are
EPOCHS = {"cola": 3, "stsb": 3, "sst2": 2, "qnli": 2, "qqp": 2, "mnli": 2}
TRAIN_ROWS = {"sst2": 12_000}
SPLITS = {"mnli": ["dev_matched"]}
TRIAL_ROWS = {"sst2": 8_700, "stsb": 5_100}  # nearly all: in shorter runs higher rates are best
RATES_FROM = {"w3": "w4"}  # no method has trials at 3 bits; all take the rates that 4 bits chose
HELD_OUT = 0.1
BATCH_SIZE = 16
DROPOUT = 0.0  # for every method: full fine-tuning, too, reaches more without it in so few epochs
# Three rates for each method, a factor of three or so apart.
RATES = {
    "full": (2e-5, 5e-5, 1.5e-4),
    "outliers": (1e-3, 3e-3, 1e-2),
    "random": (3e-3, 1e-2, 3e-2),
    "scales": (1e-4, 3e-4, 1e-3),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "lora": (5e-4, 1.5e-3, 5e-3),
    "loftq": (5e-4, 1.5e-3, 5e-3),
    "qat": (2e-5, 5e-5, 1.5e-4),
    "qat-kd": (2e-5, 5e-5, 1.5e-4),
    "outliers-kd": (1e-3, 3e-3, 1e-2),
}
# What is changed for a trial of an option: fields of TuneOptions, and of the backbone's scheme.
OPTIONS: dict[str, tuple[Row, Row]] = {
    "outliers and head only": ({"norms": False, "biases": False, "scales": False}, {}),
    "no step sizes": ({"scales": False}, {}),
    "positions: random": ({"positions": "random"}, {}),
    "positions: first gradient": ({"positions": "gradient"}, {}),
    "positions: mixed": ({"positions": "mix"}, {}),
    "positions: Gaussian tail": ({}, {"rule": "tail"}),
    "positions: magnitude": ({}, {"rule": "magnitude"}),
    "spread over the model": ({}, {"spread": "model"}),
    "start from the grid": ({"initial": "decoded"}, {}),
    "rate by step size": ({"rate_by_step": True}, {}),
    "cosine": ({"schedule": "cosine"}, {}),
    "constant rate": ({"schedule": "constant"}, {}),
    "longer warm-up": ({"warmup": 0.2}, {}),
    "other rate of the rest x 3": ({"head_learning_rate": 1.5e-3}, {}),
    "other rate of the rest x 10": ({"head_learning_rate": 5e-3}, {}),
    "1 % outliers": ({}, {"share": 0.01}),
    "gptq": ({}, {"strategy": "gptq"}),
    "full levels": ({}, {"levels": "full"}),
}
BUDGET = 0.0079  # 0.5 % outliers, and the norms and biases of MiniLM
# The same budget for all: norms, biases and step sizes take 0.48 % of MiniLM, and outliers get the rest.
CHOSEN: dict[str, Row] = {name: {"budget": BUDGET} for name in ("lora", "loftq")}
CHOSEN |= {name: {"scales": True, "budget": BUDGET} for name in ("outliers", "outliers-kd", "random")}
KEY = ("kind", "model", "task", "method", "scheme", "seed")
KEY += ("rate", "dropout", "options", "rows", "epochs", "batch", "precision")
FROM_FLOAT = ("full", "ptq", "qat", "qat-kd")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=minilm_folder(), help="folder of the float model; default the demo's MiniLM")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--rates-of", default="MiniLM-L6", help="the model whose trials chose the rates")
    parser.add_argument("--train-rows", type=int, help="train on so many rows; default: as the task says")
    parser.add_argument("--budget", type=float, default=BUDGET, help="trained share of every method that is given one")
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    parser.add_argument("--kind", choices=["trial", "option", "final"], nargs="+", default=["trial", "final"])
    parser.add_argument("--tasks", nargs="+", default=["cola", "stsb", "sst2"])
    parser.add_argument("--methods", nargs="+", default=["full", "outliers", "random"])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="which to try")
    parser.add_argument("--schemes", nargs="+", default=["w4", "w2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default_device().type)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps models between calls")
    arguments = parser.parse_args()
    if arguments.device != default_device().type:
        parser.error(f"this machine trains on {default_device().type}; hide or show its GPU to choose")
    study = Study(arguments)
    for method in arguments.methods:
        for scheme in ["fp32"] if method == "full" else arguments.schemes:
            if "trial" in arguments.kind and method != "ptq" and scheme not in RATES_FROM:
                for task in SEARCHED:
                    for rate in RATES[method]:
                        study.trial(task, method, scheme, rate)
            if "option" in arguments.kind and method == "outliers":
                for name in arguments.options:
                    for task in SEARCHED:
                        study.option(task, scheme, name)
            if "final" in arguments.kind:
                for task in arguments.tasks:
                    for seed in arguments.seeds:
                        study.final(task, method, scheme, seed)


class Study:
    """One float model, and the runs on it that the results file lacks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work / arguments.name / str(arguments.train_rows or "all")
        self.work.mkdir(parents=True, exist_ok=True)

    def trial(self, task: str, method: str, scheme: str, rate: float) -> None:
        """Train on some rows at one rate, and score rows that are held out."""
        data = held_out_data(task, self.arguments.data_dir)
        row = self._row("trial", task, method, scheme, 0, rate, data, EPOCHS[task])
        if not done(FILE, row, KEY):
            self._run(row, data, self.work / "trial")

    def option(self, task: str, scheme: str, name: str) -> None:
        """A trial of ours with one option changed."""
        data = held_out_data(task, self.arguments.data_dir)
        rate = self._best_rate("outliers", scheme)
        row = self._row("option", task, "outliers", scheme, 0, rate, data, EPOCHS[task])
        options, changes = OPTIONS[name]
        row |= {"options": row["options"] | options, "option": name, "backbone": changes}
        if not done(FILE, row, (*KEY, "option")):
            self._run(row, data, self.work / "trial")

    def final(self, task: str, method: str, scheme: str, seed: int) -> None:
        """Train on all rows at the rate of the best trials, and score dev."""
        data = task_data(task, self.arguments.data_dir, self.arguments.train_rows)
        rate = self._best_rate("full" if method == "ptq" else method, scheme)
        row = self._row("final", task, method, scheme, seed, rate, data, EPOCHS[task])
        output = self.work / f"{task}-{method}-{scheme}-{seed}"
        if method == "ptq":
            if not done(FILE, row, KEY):
                self._quantize_after(row, data, output)
        elif not done(FILE, row, KEY) or (method == "full" and not output.exists()):
            self._run(row, data, output)

    def _best_rate(self, method: str, scheme: str) -> float:
        return best_rate(read_rows(FILE), self.arguments.rates_of, method, scheme)

    def _chosen(self, method: str) -> Row:
        """The options of a method; in narrow models norms, biases and step sizes alone need a larger budget."""
        chosen = CHOSEN.get(method, {})
        return chosen | {"budget": self.arguments.budget} if chosen else chosen

    def _row(
        self, kind: str, task: str, method: str, scheme: str, seed: int, rate: float, data: TaskData, epochs: int
    ) -> Row:
        return {
            "kind": kind,
            "model": self.arguments.name,
            "task": task,
            "metric": data.primary,
            "method": method,
            "scheme": scheme,
            "seed": seed,
            "rate": rate,
            "dropout": DROPOUT,
            "options": self._chosen(method),
            "epochs": epochs,
            "batch": BATCH_SIZE,
            "rows": len(data.train),
            **training_device(),
        }

    def _run(self, row: Row, data: TaskData, output: Path) -> None:
        """Train, and add the row; only models that later rows need are kept."""
        method, scheme = row["method"], row["scheme"]
        options = lowbit.TuneOptions(
            epochs=row["epochs"],
            batch_size=BATCH_SIZE,
            seed=row["seed"],
            learning_rate=row["rate"],
            dropout=row["dropout"],
            save_steps=0,
            cache="none" if method in FROM_FLOAT else row["precision"],
            **row["options"],
        )
        if method in ("qat", "qat-kd"):
            options = dataclasses.replace(options, recipe=lowbit.Recipe.parse(scheme))
        if method.endswith("-kd"):
            teacher = self._full(row["task"], row["seed"]) if row["kind"] == "final" else self._trial_teacher(row, data)
            options = dataclasses.replace(options, teacher=teacher)
        if method == "loftq":
            options = dataclasses.replace(options, float_model=Path(self.arguments.model))
        changes = row.get("backbone", {})
        start = Path(self.arguments.model) if method in FROM_FLOAT else self._backbone(scheme, changes)
        remove(output)
        result = lowbit.tune(start, output, data, method=method.removesuffix("-kd"), options=options)
        bits = 32.0 if method == "full" else measure(output if method in FROM_FLOAT else start).effective_bits
        append(
            FILE,
            row
            | {
                "score": 0.0 if math.isnan(result.score) else result.score,  # nothing correlates with a constant
                "trained_share": round(result.trained_share, 6),
                "trained": result.trained,
                "seconds": round(result.seconds, 1),
                "effective_bits": round(bits, 4),
            },
        )
        if method != "full" or row["kind"] == "trial":
            remove(output)

    def _quantize_after(self, row: Row, data: TaskData, output: Path) -> None:
        """PTQ of the fully fine-tuned model."""
        start = time.perf_counter()
        full = self._full(row["task"], row["seed"])
        remove(output)
        lowbit.quantize(full, row["scheme"], output=output)
        scores = score_model(load(output), load_tokenizer(output), data, max_length=128, precision="auto")
        extra = {"score": next(iter(scores.values()))[data.primary], "trained_share": 1.0, "trained": {}}
        seconds = round(time.perf_counter() - start, 1)
        append(FILE, row | extra | {"seconds": seconds, "effective_bits": round(measure(output).effective_bits, 4)})
        remove(output)

    def _full(self, task: str, seed: int) -> Path:
        """The fully fine-tuned model of a task, made where it is not there."""
        output = self.work / f"{task}-full-fp32-{seed}"
        if not output.exists():
            self.final(task, "full", "fp32", seed)
        return output

    def _trial_teacher(self, row: Row, data: TaskData) -> Path:
        """A model fine-tuned on the rows of a trial only: one that knew the others would give them away."""
        output = self.work / f"{row['task']}-full-trial"
        if not output.exists():
            rate = self._best_rate("full", "fp32")
            options = lowbit.TuneOptions(
                epochs=row["epochs"],
                batch_size=BATCH_SIZE,
                learning_rate=rate,
                dropout=row["dropout"],
                seed=row["seed"],
                save_steps=0,
            )
            lowbit.tune(self.arguments.model, output, data, method="full", options=options)
        return output

    def _backbone(self, text: str, changes: Row) -> Path:
        """The one backbone of a scheme with changes."""
        output = self.work / "-".join(["backbone", text, *map(str, changes.values())])
        if not output.exists():
            scheme = lowbit.Scheme.parse(text)
            rule = {name: value for name, value in changes.items() if name in ("rule", "share", "spread")}
            rest = {name: value for name, value in changes.items() if name not in rule}
            scheme = dataclasses.replace(scheme, outliers=dataclasses.replace(scheme.outliers, **rule), **rest)
            lowbit.quantize(self.arguments.model, scheme, output=output)
        return output


def task_data(task: str, data_dir: str | None, train_rows: int | None = None) -> TaskData:
    """The training rows of a final run, the same ones for every seed, and dev."""
    return glue_data(task, data_dir, train_rows=train_rows or TRAIN_ROWS.get(task), splits=SPLITS.get(task), seed=0)


def held_out_data(task: str, data_dir: str | None) -> TaskData:
    """Training rows of a trial, with a tenth of all training rows to score instead of dev."""
    data = task_data(task, data_dir)
    if task == "sst2":
        kept, held_out = hold_out_sentences(data.training_rows(), HELD_OUT, 0)
    else:
        kept, held_out = data.training_rows().split(HELD_OUT, 0)
    return dataclasses.replace(data, train=kept.sample(TRIAL_ROWS[task], 0), evaluations={"held out": held_out})


def best_rate(rows: list[Row], model: str, method: str, scheme: str) -> float:
    """The rate whose trials have the best mean score over the searched tasks; all of them must be there.

    They may have run in either precision.
    """
    scheme = "fp32" if method == "full" else RATES_FROM.get(scheme, scheme)
    wanted = {"kind": "trial", "model": model, "method": method, "scheme": scheme}
    wanted |= {"dropout": DROPOUT, "batch": BATCH_SIZE}
    trials = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    means = {}
    for rate in RATES[method]:
        scores = {r["task"]: r["score"] for r in trials if r["rate"] == rate and r["rows"] == TRIAL_ROWS[r["task"]]}
        if set(scores) != set(SEARCHED):
            raise SystemExit(f"{method} {scheme}: the trials at {rate:g} are incomplete; run them with --kind trial")
        means[rate] = statistics.mean(scores.values())
    return max(means, key=means.__getitem__)


def remove(folder: Path) -> None:
    """Delete a model folder that a study has written, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
