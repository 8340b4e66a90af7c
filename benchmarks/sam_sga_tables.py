"""The table of the minimax study: the slope of each method beside the bound."""

from pathlib import Path

from markup import MISSING, markdown, newest, show, table
from rows import Row, read_rows


@table("sam_sga")
def sam_sga(results: Path) -> str:
    """One line per method, as the study ran them."""
    headings = ["Method", "Slope", "95 % interval", "First T", "Mean", "Last T", "Mean", "Within O(1/√T)"]
    lines = [
        [
            show(row, "method"),
            "diverges" if row["slope"] is None else show(row, "slope", "{:.3f}"),
            MISSING if row["slope"] is None else f"{row['slope_low']:.3f} to {row['slope_high']:.3f}",
            str(row["horizons"][0]),
            _mean(row, 0),
            str(row["horizons"][-1]),
            _mean(row, -1),
            "yes" if within_bound(row) else "no",
        ]
        for row in newest(read_rows(results / "sam_sga.jsonl"), "method")
    ]
    return markdown(headings, lines, text_columns=1)


def within_bound(row: Row) -> bool:
    """Whether a slope of -1/2 or less is in the interval."""
    return row["slope"] is not None and row["slope_low"] <= -0.5


def _mean(row: Row, place: int) -> str:
    return MISSING if row["means"][place] is None else f"{row['means'][place]:.3g}"
