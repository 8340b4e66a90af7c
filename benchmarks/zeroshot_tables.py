"""Tables of zero-shot quantization."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markup import MISSING, markdown, newest, show, step_cost, table
from quality_tables import spread
from rows import Row, read_rows

IN_PAIRS = "; generated inputs in pairs"  # ends the setting of rows whose generated inputs are pairs of texts
_LINE = ("model", "task", "scheme", "strategy", "inputs", "precision", "method", "generator", "changed")
_LINE += ("teacher_dropout",)
_RUN = ("model", "scheme", "strategy", "precision", "teacher_dropout")
_COMPARED = ("model", "task", "scheme", "inputs", "precision", "teacher_dropout")  # what a run shares with its start


@table("zeroshot_quality")
def zeroshot_quality(results: Path) -> str:
    """One line per method: score on dev, the part of the gap to the teacher that it closes, divergence, last loss.

    In the setting of the last row; what was found in earlier ones is not shown.
    """
    kept = _current(results)
    lines = []
    groups = _grouped(kept, *_LINE)
    rounded = _grouped([row for row in kept if row["method"] == "rtn"], *_COMPARED)
    for line in sorted(groups, key=lambda line: (*line[:3], line[3] != "mse", line[3:6])):
        own = groups[line]
        starts = rounded.get(tuple(own[0][name] for name in _COMPARED), [])
        lines.append(
            [
                *_of_method(own[0]),
                show(own[0], "precision"),
                f"{100 * own[0]['teacher_score']:.1f}",
                spread(100 * row["score"] for row in own),
                _recovered(own, starts) if starts and own[0]["method"] != "rtn" else MISSING,
                *(f"{statistics.fmean(row[name] for row in own):.3f}" for name in ("distance", "gap")),
            ]
        )
    headings = ["Model", "Task", "Scheme", "Start", "Inputs", "Method", "Generator", "Changed", "Run in", "Teacher"]
    return markdown([*headings, "Score", "Recovered", "Distance", "Gap"], lines, text_columns=9)


@table("zeroshot_paired")
def zeroshot_paired(results: Path) -> str:
    """ZSAQ minus each other method with the same start and seed, in points, at as many steps and at twice as many.

    The mean is that over the tasks with the most seeds in common.
    """
    kept = _current(results)
    tasks = list(dict.fromkeys(row["task"] for row in kept))
    lines = []
    for line, ours in _grouped([row for row in kept if row["method"] == "zsaq"], *_RUN, "changed").items():
        steps = ours[0]["options"].get("steps")  # None: as many as by default
        beside = [row for row in kept if tuple(row[name] for name in _RUN) == line[:-1] and row["method"] != "zsaq"]
        lengths = (steps, steps and 2 * steps)
        beside = [row for row in beside if row["method"] == "rtn" or row["options"].get("steps") in lengths]
        for (method, changed), theirs in _grouped(beside, "method", "changed").items():
            gains = {task: _gains(ours, theirs, task) for task in tasks}
            most = max(map(len, gains.values()))
            if most:
                counted = [task for task in tasks if len(gains[task]) == most]
                shared = set.intersection(*(set(gains[task]) for task in counted))
                means = [statistics.fmean(gains[task][seed] for task in counted) for seed in sorted(shared)]
                cells = [*(spread(gains[task].values()) for task in tasks), ", ".join(counted), spread(means)]
                lines.append([*(str(name) for name in line[:4]), line[-1], method, changed, *cells])
    headings = ["Model", "Scheme", "Start", "Run in", "ZSAQ", "minus", "Changed"]
    return markdown([*headings, *tasks, "Mean of", "Mean"], lines, text_columns=7)


def _gains(ours: Sequence[Row], theirs: Sequence[Row], task: str) -> dict[int, float]:
    """Differences of the scores of a task in points by seed, of runs with the same kind of inputs."""
    others = {(row["inputs"], row["seed"]): row["score"] for row in theirs if row["task"] == task}
    found = [(row, (row["inputs"], row["seed"])) for row in ours if row["task"] == task]
    return {row["seed"]: 100 * (row["score"] - others[key]) for row, key in found if key in others}


def _recovered(own: Sequence[Row], starts: Sequence[Row]) -> str:
    """How much of the way from the best score without training to the teacher's the mean score is.

    Nothing is said where that way is shorter than a point, which is noise.
    """
    scores = [statistics.fmean(row["score"] for row in rows) for rows in _grouped(starts, "strategy").values()]
    start, teacher = max(scores), own[0]["teacher_score"]
    if teacher - start < 0.01:
        return MISSING
    return f"{100 * (statistics.fmean(row['score'] for row in own) - start) / (teacher - start):.0f} %"


def _current(results: Path) -> list[Row]:
    """Finals in the setting of the last one, the newest of each."""
    return newest(_of_last_setting(_rows(results, "final")), *_LINE, "seed")


def _of_last_setting(rows: Sequence[Row]) -> list[Row]:
    """Rows in the setting of the last one that has any, and rows without training in the formats of these."""
    setting = next((row["setting"] for row in reversed(rows) if row["setting"]), None)
    formats = {row["precision"] for row in rows if row["setting"] == setting}
    return [row for row in rows if row["setting"] == setting or (not row["setting"] and row["precision"] in formats)]


def _grouped(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values under some names, in the order in which these come first."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _rows(results: Path, kind: str) -> list[Row]:
    """Rows of a kind; ``changed`` are the options that are not as by default.

    ``inputs`` says what the generated ones are, which is no part of ``setting`` here.
    """
    return [
        row
        | {
            "changed": _changed(row),
            "inputs": "pairs" if row["setting"].endswith(IN_PAIRS) else "texts",
            "setting": row["setting"].removesuffix(IN_PAIRS),
        }
        for row in read_rows(results / "zeroshot_quality.jsonl")
        if row["kind"] == kind
    ]


def _changed(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["options"].items()) or MISSING


@table("zeroshot_held_out")
def zeroshot_held_out(results: Path) -> str:
    """One line per run that was scored on training rows: what was changed, and what came of it."""
    lines = [
        [
            *_of_method(row),
            row["setting"],
            *(f"{100 * row[name]:.1f}" for name in ("teacher_score", "score")),
            show(row, "distance", "{:.4f}"),
            show(row, "gap", "{:.3f}"),
        ]
        for row in _rows(results, "held-out")
    ]
    headings = ["Model", "Task", "Scheme", "Start", "Inputs", "Method", "Generator", "Changed", "Setting"]
    return markdown([*headings, "Teacher", "Score", "Distance", "Gap"], lines, text_columns=9)


def _of_method(row: Row) -> list[str]:
    """What was quantized and how."""
    named = [show(row, name) for name in ("model", "task", "scheme", "strategy", "inputs", "method")]
    return [*named, row["generator"] or MISSING, row["changed"]]


@table("zeroshot_perplexity")
def zeroshot_perplexity(results: Path) -> str:
    """One line per method and start: perplexity in each width, beside the float model's."""
    found = [row | {"changed": _changed(row)} for row in read_rows(results / "zeroshot_perplexity.jsonl")]
    line = ("model", "strategy", "method", "generator", "changed", "precision")
    rows = newest(_of_last_setting(found), *line, "scheme", "seed")
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    lines = []
    for names, own in _grouped(rows, *line).items():
        cells = [spread(row["perplexity"] for row in own if row["scheme"] == scheme) for scheme in schemes]
        lines.append([*(name or MISSING for name in names), *cells])
    headings = ["Model", "Start", "Method", "Generator", "Changed", "Run in"]
    return markdown([*headings, *schemes], lines, text_columns=6)


@table("zeroshot_backbone")
def zeroshot_backbone(results: Path) -> str:
    """One line per backbone: its scores when tuned for each task, and their mean."""
    rows = _of_last_setting(read_rows(results / "zeroshot_backbone.jsonl"))
    rows = newest(rows, "model", "scheme", "backbone", "precision", "task", "seed")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    for line, own in _grouped(rows, "model", "scheme", "backbone", "generator", "precision").items():
        scores = [[100 * row["score"] for row in own if row["task"] == task] for task in tasks]
        mean = f"{statistics.fmean(map(statistics.fmean, scores)):.1f}" if all(scores) else MISSING
        lines.append([*(str(name or MISSING) for name in line), *map(spread, scores), mean])
    headings = ["Model", "Bits", "Backbone", "Generator", "Run in"]
    return markdown([*headings, *tasks, "Mean"], lines, text_columns=5)


@table("zeroshot_cost")
def zeroshot_cost(results: Path) -> str:
    """Time and memory of a training step."""
    return cost_table(read_rows(results / "zeroshot_cost.jsonl"))


def cost_table(rows: Sequence[Row]) -> str:
    """One line per case: time and memory of a step beside those of the loop without perturbation and ascent."""
    headings = ["Model", "Device", "Precision", "Scheme", "Batch", "Generator", "Step", "Time per step"]
    headings += ["± (all steps)", "Time / plain", "Peak memory", "Peak / plain", "Threads"]
    setting = ("model", "device", "precision", "scheme", "batch", "length", "generator", "threads")
    lines = [
        [
            *(show(row, name) for name in ("model", "device", "precision", "scheme")),
            f"{row['batch']} × {row['length']}",
            row["generator"] or "built-in",
            show(row, "case"),
            *step_cost(row),
        ]
        for row in newest(rows, *setting, "case")
    ]
    return markdown(headings, lines, text_columns=7)
