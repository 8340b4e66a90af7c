"""Tables of stage 2 and its baselines: scores on dev, and the trials that chose the learning rates."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from markup import MISSING, markdown, newest, show, table
from rows import Row, read_rows

FILE = "tuning_quality.jsonl"
MAIN_TASKS = ("cola", "stsb", "sst2")
FROZEN_TASKS = ("qnli", "qqp", "mnli")
SMALL = ("roberta-small", "t5-small", "opt-mini")  # models of other architectures, on one task
METHODS = {
    "full": "full fine-tuning",
    "ptq": "PTQ after it",
    "outliers": "outliers (ours)",
    "outliers-kd": "outliers, teacher",
    "random": "random positions",
    "lora": "LoRA",
    "loftq": "LoftQ",
    "bitfit": "biases (BitFit)",
    "scales": "step sizes (PEQA)",
    "qat": "QAT (LSQ)",
    "qat-kd": "QAT, teacher",
}
_KEY = ("model", "task", "method", "scheme", "seed")


@table("tuning")
def tuning(results: Path) -> str:
    """One line per model, width and method on the tasks that the recipe was chosen for."""
    return _scores(_finals(results), MAIN_TASKS)


@table("frozen")
def frozen(results: Path) -> str:
    """The same on tasks that took the recipe as it was."""
    return _scores(_finals(results), FROZEN_TASKS)


@table("tuning_small")
def tuning_small(results: Path) -> str:
    """Small models of other architectures on SST-2."""
    return _scores(_finals(results, small=True), ("sst2",))


@table("paired")
def paired(results: Path) -> str:
    """Ours minus each other method of the same width and seed, in points, on the mean over the tasks that both have."""
    rows = _finals(results)
    headings = ["Model", "Bits", "Ours minus", "Tasks", "Difference"]
    lines = []
    groups = {(row["model"], row["method"], row["scheme"]) for row in rows if row["method"] != "outliers"}
    for model, scheme in sorted(
        {(row["model"], row["scheme"]) for row in rows if row["method"] == "outliers"},
        key=lambda group: (group[0], *_order("outliers", group[1])),
    ):
        ours = {task: _runs(rows, model, task, "outliers", scheme) for task in MAIN_TASKS}
        for _, method, other in sorted(
            (group for group in groups if group[0] == model and group[2] in (scheme, "fp32")),
            key=lambda group: _order(group[1], group[2]),
        ):
            theirs = {task: _runs(rows, model, task, method, other) for task in MAIN_TASKS}
            tasks = [task for task in MAIN_TASKS if ours[task].keys() & theirs[task].keys()]
            seeds = set.intersection(*(ours[t].keys() & theirs[t].keys() for t in tasks)) if tasks else set()
            gains = [statistics.fmean(ours[t][seed] - theirs[t][seed] for t in tasks) for seed in sorted(seeds)]
            lines.append([model, scheme, METHODS[method], ", ".join(tasks) or MISSING, spread(gains)])
    return markdown(headings, lines, text_columns=4)


@table("trials")
def trials(results: Path) -> str:
    """One line per method and width: the mean held-out score of each rate over the tasks it was tried on.

    Where a task was tried with several numbers of rows, the last one counts.
    """
    found: dict[tuple[str, ...], dict[float, dict[str, float]]] = {}
    rows = _rows(results, "trial")
    last = {(row["model"], row["task"]): row["rows"] for row in rows}
    for row in newest([row for row in rows if row["rows"] == last[row["model"], row["task"]]], *_KEY, "rate"):
        line = (row["model"], row["method"], row["scheme"])
        found.setdefault(line, {}).setdefault(row["rate"], {})[row["task"]] = row["score"]
    lines = []
    for model, method, scheme in sorted(found, key=lambda line: (line[0], *_order(line[1], line[2]))):
        rates = found[model, method, scheme]
        tasks = sorted({task for scores in rates.values() for task in scores})
        means = {r: statistics.fmean(s.values()) if len(s) == len(tasks) else None for r, s in rates.items()}
        cells = [f"{rate:g}: {show(means, rate, '{:.3f}')}" for rate in sorted(rates)]
        lines.append([model, METHODS[method], scheme, ", ".join(tasks), *cells])
    width = max((len(line) for line in lines), default=4)
    lines = [[*line, *[MISSING] * (width - len(line))] for line in lines]
    headings = ["Model", "Method", "Bits", "Tasks", *(f"Rate {number}" for number in range(1, width - 3))]
    return markdown(headings, lines, text_columns=4)


@table("options")
def options(results: Path) -> str:
    """One line per width and option that was changed: held-out scores, and how the mean differs from none changed."""
    same = ("model", "scheme", "rate", "task", "rows", "precision", "dropout")
    plain = {}
    for row in newest(_rows(results, "trial"), *_KEY, "rate", "rows", "precision", "dropout"):
        if row["method"] == "outliers":
            plain[tuple(row.get(name) for name in same)] = 100 * row["score"]
    found: dict[tuple[str, str, float, str], dict[str, float]] = {}
    gains: dict[tuple[str, str, float, str], list[float]] = {}
    for row in newest(_rows(results, "option"), *_KEY, "rate", "option"):
        line = (row["model"], row["scheme"], row["rate"], row["option"])
        score = found.setdefault(line, {})[row["task"]] = 100 * row["score"]
        before = plain.get(tuple(row.get(name) for name in same))
        gains.setdefault(line, []).extend([] if before is None else [score - before])
    tasks = sorted({task for scores in found.values() for task in scores})
    lines = []
    for model, scheme, rate, option in sorted(found, key=lambda line: (line[0], *_order("outliers", line[1]), line[3])):
        scores, known = found[model, scheme, rate, option], gains[model, scheme, rate, option]
        gain = f"{statistics.fmean(known):+.1f}" if len(known) == len(tasks) else MISSING
        cells = [f"{scores[task]:.1f}" if task in scores else MISSING for task in tasks]
        lines.append([model, scheme, f"{rate:g}", option, *cells, gain])
    return markdown(["Model", "Bits", "Rate", "Changed", *tasks, "Gain"], lines, text_columns=4)


@table("long")
def long(results: Path) -> str:
    """Longer runs, scored on held-out rows: one line per task, precision, number of rows, method, rate and change.

    Of SST-2, those that hold out whole sentences.
    """
    lines = []
    for row in _rows(results, "long"):
        if not row.get("held_out"):
            continue
        changes = [
            f"{name} {value:g}" if name == "budget" else f"{name} {value}" for name, value in row["options"].items()
        ]
        changes += [row["optimizer"]] if "optimizer" in row else []
        changes += ["no dropout"] if row.get("dropout") == 0 else []
        cells = [row["model"], row["task"], row["precision"], row["scheme"], METHODS[row["method"]], f"{row['rate']:g}"]
        cells += [", ".join(changes) or MISSING, str(row["rows"]), f"{100 * row['score']:.1f}"]
        lines.append([*cells, show(row, "held_out_loss", "{:.3f}")])
    headings = ["Model", "Task", "Run in", "Bits", "Method", "Rate", "Changed", "Rows", "Score", "Loss"]
    return markdown(headings, lines, text_columns=7)


def _scores(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """A table of scores in points by method and task, with the mean over the tasks and the distance to full."""
    headings = ["Model", "Bits", "Method", "Trained", *tasks, "Mean", "To full"]
    lines = []
    groups = {(row["model"], row["method"], row["scheme"]) for row in rows if row["task"] in tasks}
    for model, method, scheme in sorted(groups, key=lambda group: (group[0], *_order(group[1], group[2]))):
        runs = {task: _runs(rows, model, task, method, scheme) for task in tasks}
        full = {task: _runs(rows, model, task, "full", "fp32") for task in tasks}
        differences = {
            task: [runs[task][seed] - full[task][seed] for seed in sorted(runs[task].keys() & full[task].keys())]
            for task in tasks
        }
        share = next(r for r in rows if (r["model"], r["method"], r["scheme"]) == (model, method, scheme))
        whole = all(runs.values())
        mean = f"{statistics.fmean(statistics.fmean(run.values()) for run in runs.values()):.1f}" if whole else MISSING
        gap = MISSING
        if method != "full" and all(differences.values()):
            gap = f"{statistics.fmean(map(statistics.fmean, differences.values())):+.1f}"
        trained = "all" if share["trained_share"] == 1 else f"{100 * share['trained_share']:.2f} %"
        lines.append([model, scheme, METHODS[method], trained, *(spread(runs[t].values()) for t in tasks), mean, gap])
    return markdown(headings, lines, text_columns=3)


def spread(scores: Iterable[float]) -> str:
    """Mean ± sample standard deviation, with the number of seeds."""
    found = list(scores)
    if not found:
        return MISSING
    if len(found) == 1:
        return f"{found[0]:.1f} (n=1)"
    return f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f} (n={len(found)})"


def _runs(rows: Iterable[Row], model: str, task: str, method: str, scheme: str) -> dict[int, float]:
    """Scores in points by seed."""
    wanted = (model, task, method, scheme)
    return {
        row["seed"]: 100 * row["score"]
        for row in rows
        if (row["model"], row["task"], row["method"], row["scheme"]) == wanted
    }


def _finals(results: Path, *, small: bool = False) -> list[Row]:
    """Those without dropout, which all methods have in common; the first ones had the model's own."""
    rows = [row for row in _rows(results, "final") if row.get("dropout") == 0]
    return newest([row for row in rows if (row["model"] in SMALL) == small], *_KEY)


def _rows(results: Path, kind: str) -> list[Row]:
    return [row for row in read_rows(results / FILE) if row["kind"] == kind]


def _order(method: str, scheme: str) -> tuple[float, int]:
    """Full fine-tuning first, then by width, most bits first."""
    return (-math.inf if scheme == "fp32" else -float(scheme[1]), list(METHODS).index(method))
