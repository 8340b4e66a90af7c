"""Tables of what stage 2 costs."""

from collections.abc import Sequence
from pathlib import Path

from markup import markdown, newest, show, step_cost, table
from rows import Row, read_rows


@table("tuning_cost")
def tuning_cost(results: Path) -> str:
    """Time and memory of a training step."""
    return cost_table([{"dropout": "0.1"} | row for row in read_rows(results / "tuning_cost.jsonl")])


def cost_table(rows: Sequence[Row]) -> str:
    """One line per method and cache: time and memory of a training step beside those of full fine-tuning."""
    headings = [
        "Geometry",
        "Device",
        "Precision",
        "Batch",
        "Method",
        "Cache",
        "Dropout",
        "Trained",
        "Time per step",
        "± (all steps)",
    ]
    headings += ["Time / full", "Peak memory", "Peak / full", "Threads"]
    setting = ("geometry", "device", "precision", "threads", "batch", "length")
    order = {"full": 0, "outliers": 1}
    lines = [
        [
            *(show(row, name) for name in ("geometry", "device", "precision")),
            f"{row['batch']} × {row['length']}",
            *(show(row, name) for name in ("method", "cache", "dropout")),
            show(row, "trained", "{:,}"),
            *step_cost(row),
        ]
        for row in sorted(
            newest(rows, *setting, "method", "cache", "dropout"),
            key=lambda row: (
                *(str(row[name]) for name in setting),
                order.get(row["method"], 2),
                row["method"],
                row["cache"] != "none",
                row["dropout"] == "0",
            ),
        )
    ]
    return markdown(headings, lines, text_columns=7)
