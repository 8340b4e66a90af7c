"""Tables of results/runtime.jsonl, which runtime_study.py writes."""

from pathlib import Path

from markup import markdown, mebibytes, newest, show, table
from rows import Row, read_rows

LAYOUTS = ("latency", "memory")


def _rows(results: Path, kind: str) -> list[Row]:
    rows = [row for row in read_rows(results / "runtime.jsonl") if row["kind"] == kind]
    return newest(rows, "kind", "scheme", "layout", "model", "batch", "cpu")


@table("agreement")
def agreement(results: Path) -> str:
    """One line per width and layout: predictions that are others than before, and accuracy before and after."""
    lines = [
        [
            row["scheme"],
            row["layout"],
            f"{row['changed']} of {row['rows']} ({row['changed'] / row['rows']:.2%})",
            show(row, "accuracy_before", "{:.4f}"),
            show(row, "accuracy", "{:.4f}"),
            row["cpu"],
        ]
        for row in _rows(results, "agreement")
    ]
    return markdown(
        ["Bits", "Layout", "Changed", "Accuracy before", "Accuracy after", "Processor"], lines, text_columns=2
    )


@table("layouts")
def layouts(results: Path) -> str:
    """One line per layout: bytes of the model, of 32 adapters that are held beside it, and the time of a switch."""
    lines = []
    switches = {(row["layout"], row["cpu"]): row for row in _rows(results, "switch")}
    for row in _rows(results, "memory"):
        switch = switches.get((row["layout"], row["cpu"]), {})
        whole = row["fp32_bytes"]
        held = {"bytes": 32 * switch["bytes"]} if switch else {}
        times = f"{1e3 * switch['seconds']:.1f} ms" if switch else show(switch, "seconds")
        size = [mebibytes(row, "bytes"), f"{row['bytes'] / whole:.3f}×"]
        lines.append([row["layout"], *size, mebibytes(held, "bytes"), times, row["cpu"]])
    return markdown(["Layout", "Model", "Of fp32", "32 adapters", "Switch", "Processor"], lines, text_columns=1)


@table("generation")
def generation(results: Path) -> str:
    """One line per model and batch: time of 16 tokens, and how many times faster than float each layout is."""
    found: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in _rows(results, "generation"):
        found.setdefault((row["model"], row["batch"], row["cpu"]), {})[row["layout"]] = row
    lines = [
        [
            model,
            str(batch),
            f"{1e3 * rows['float']['seconds']:.0f} ms",
            *(_faster(rows[layout]) for layout in LAYOUTS),
            cpu,
        ]
        for (model, batch, cpu), rows in found.items()
    ]
    return markdown(["Model", "Batch", "Float", *LAYOUTS, "Processor"], lines, text_columns=1)


def _faster(row: Row) -> str:
    return f"{1e3 * row['seconds']:.0f} ms ({row['ratio']:.2f}×)"
