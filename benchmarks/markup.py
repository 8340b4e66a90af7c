"""Markdown tables from rows: the registry of tables, and what their functions share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rows import Row

Table = Callable[[Path], str]

MISSING = "–"

TABLES: dict[str, Table] = {}


def table(name: str) -> Callable[[Table], Table]:
    """Register a function from the results folder to a markdown table under ``name``."""

    def register(function: Table) -> Table:
        TABLES[name] = function
        return function

    return register


def newest(rows: Iterable[Row], *key: str) -> list[Row]:
    """The newest row per key: the latest ``date``, and the later line where dates are equal or absent."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row.get("date") or ""):
        found[tuple(row.get(name) for name in key)] = row
    return list(found.values())


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A markdown table: the first ``text_columns`` left-aligned, the others right-aligned."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(headings))]
    body = lines or [[MISSING] * len(headings)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *body))


def show(row: Row, field: str, form: str = "{}") -> str:
    """One field of a row as text."""
    return MISSING if row.get(field) is None else form.format(row[field])


def mebibytes(row: Row, field: str) -> str:
    """A field in bytes as MiB."""
    return MISSING if row.get(field) is None else f"{row[field] / 2**20:.1f} MiB"


def step_cost(row: Row) -> list[str]:
    """Cells of what a training step costs: time, spread, to the first case, peak memory, to the first case, threads."""
    return [
        show(row, "seconds", "{:.3f} s"),
        show(row, "seconds_spread", "{:.3f} s"),
        show(row, "time_ratio", "{:.2f}×"),
        show(row, "peak_mib", "{:.0f} MiB"),
        show(row, "memory_ratio", "{:.2f}×"),
        show(row, "threads"),
    ]
