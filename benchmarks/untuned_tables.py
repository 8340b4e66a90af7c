"""Tables of what quantization alone does to a model: lowbit's schemes, other libraries, and the strategies."""

from pathlib import Path

from markup import markdown, newest, show, table
from rows import Row, read_rows


@table("untuned")
def untuned(results: Path) -> str:
    """One line per model and lowbit recipe, most bits first."""
    headings = ["Model", "Scheme", "Effective bits", "Weight error", "Loss on train", "Loss on dev", "Spearman on dev"]
    dev, train = _untuned(results, "dev"), _untuned(results, "train")
    lines = [
        [
            show(row, "model"),
            show(row, "label"),
            show(row, "effective_bits", "{:.3f}"),
            show(row, "weight_error", "{:.4f}"),
            show(_same(train, row), "loss", "{:.4f}"),
            show(row, "loss", "{:.4f}"),
            show(row, "spearman", "{:.4f}"),
            show(row, "seconds", "{:.1f} s"),
        ]
        for row in sorted(dev, key=lambda row: (row["model"], -row.get("effective_bits", 0), row["label"]))
        if row["source"] == "lowbit"
    ]
    return markdown([*headings, "Time"], lines, text_columns=2)


@table("peers")
def peers(results: Path) -> str:
    """One line per option of a library, beside the lowbit recipe of at most its bits that is best on train."""
    headings = ["Library", "Option", "Effective bits", "Weight error", "Loss on dev"]
    headings += ["lowbit", "Effective bits", "Weight error", "Loss on dev", "Ahead by"]
    dev, train = _untuned(results, "dev"), _untuned(results, "train")
    lines = []
    for row in sorted(dev, key=lambda row: (-row.get("effective_bits", 0), row["source"], row["label"])):
        if row["source"] == "lowbit":
            continue
        ours = _same(dev, _best_within(train, row))
        ahead = {"by": row["loss"] - ours["loss"]} if "loss" in row and "loss" in ours else {}
        lines.append(
            [
                f"{row['source']} {row['version'] or 'absent'}",
                show(row, "label"),
                *_costs(row),
                show(ours, "label"),
                *_costs(ours),
                show(ahead, "by", "{:+.4f}"),
            ]
        )
    return markdown(headings, lines, text_columns=2)


@table("strategies")
def strategies(results: Path) -> str:
    """One line per width, granularity and strategy."""
    headings = ["Bits", "Step size per", "Strategy", "Levels", "Effective bits", "Weight error", "Output error"]
    headings += ["Spearman on dev", "Loss", "Time"]
    order = {"tensor": 0, "channel": 1}
    rows = newest(read_rows(results / "strategies.jsonl"), "model", "strategy", "bits", "granularity")
    rows.sort(key=lambda row: (-row["bits"], order.get(row["granularity"], 2), row["strategy"]))
    lines = [
        [
            show(row, "bits"),
            show(row, "granularity"),
            show(row, "strategy"),
            show(row, "levels"),
            show(row, "effective_bits", "{:.3f}"),
            show(row, "weight_error", "{:.4f}"),
            show(row, "output_error", "{:.4f}"),
            show(row, "spearman", "{:.4f}"),
            show(row, "loss", "{:.4f}"),
            show(row, "seconds", "{:.1f} s"),
        ]
        for row in rows
    ]
    return markdown(headings, lines, text_columns=4)


def _untuned(results: Path, split: str) -> list[Row]:
    """The newest row per model, library and option on one split."""
    rows = [row for row in read_rows(results / "untuned.jsonl") if row["split"] == split]
    return newest(rows, "model", "source", "label")


def _best_within(train: list[Row], peer: Row) -> Row:
    """The lowbit row on train with the smallest loss at no more bits than the peer; empty where there is none."""
    within = [
        row
        for row in train
        if row["source"] == "lowbit"
        and row["model"] == peer["model"]
        and row["effective_bits"] <= peer.get("effective_bits", 0)
    ]
    return min(within, key=lambda row: (row["loss"], row["effective_bits"]), default={})


def _same(rows: list[Row], wanted: Row) -> Row:
    """The row of the same model, library and option on another split; an empty row where there is none."""
    key = ("model", "source", "label")
    return next((row for row in rows if all(row[name] == wanted.get(name) for name in key)), {})


def _costs(row: Row) -> list[str]:
    return [
        show(row, "effective_bits", "{:.3f}"),
        show(row, "weight_error", "{:.4f}"),
        show(row, "loss", "{:.4f}"),
    ]
