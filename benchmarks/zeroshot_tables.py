"""Tables of zero-shot quantization."""

from collections.abc import Sequence
from pathlib import Path

from markup import MISSING, markdown, newest, show, step_cost, table
from rows import Row, read_rows


@table("zeroshot_quality")
def zeroshot_quality(results: Path) -> str:
    """One line per result: score on dev, that of its teacher, how far their logits are apart, and the last loss."""
    rows = [row for row in read_rows(results / "zeroshot_quality.jsonl") if row["kind"] == "final"]
    kept = newest(rows, "model", "task", "scheme", "method", "generator", "seed")
    lines = [_line(row, str(row["seed"])) for row in kept]
    headings = ["Model", "Task", "Scheme", "Method", "Generator", "Seed", "Teacher", "Score", "Distance", "Gap"]
    return markdown(headings, lines, text_columns=5)


@table("zeroshot_held_out")
def zeroshot_held_out(results: Path) -> str:
    """One line per run that was scored on training rows: what was changed, and what came of it."""
    rows = [row for row in read_rows(results / "zeroshot_quality.jsonl") if row["kind"] == "held-out"]
    changes = [", ".join(f"{name} {value}" for name, value in row["options"].items()) for row in rows]
    lines = [_line(row, changed or MISSING) for row, changed in zip(rows, changes, strict=True)]
    headings = ["Model", "Task", "Scheme", "Method", "Generator", "Changed", "Teacher", "Score", "Distance", "Gap"]
    return markdown(headings, lines, text_columns=6)


def _line(row: Row, of_run: str) -> list[str]:
    """What was quantized and how, what tells the run from others, and what came of it."""
    return [
        *(show(row, name) for name in ("model", "task", "scheme", "method")),
        row["generator"] or MISSING,
        of_run,
        *(f"{100 * row[name]:.1f}" for name in ("teacher_score", "score")),
        show(row, "distance", "{:.4f}"),
        show(row, "gap", "{:.3f}"),
    ]


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
