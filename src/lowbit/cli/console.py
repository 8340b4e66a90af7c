"""What the verbs print: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Callback = Callable[[int, int, str], None]

_FILE_WIDTH = 140  # of tables where the output is no terminal
_NAME_WIDTH = 32  # names up to this, in the first column, stay whole where a table has to be narrow


def print_error(error: Exception) -> None:
    """One ``error:`` line on standard error."""
    typer.echo("error: " + " ".join(line.strip() for line in str(error).splitlines()), err=True)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """One JSON document; numbers that JSON does not have become ``null``."""
    typer.echo(json.dumps(_finite(document), indent=indent, default=str))


def print_table(rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> None:
    """A table with one column per key of the first row; numbers are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), show_edge=False)
    for position, name in enumerate(rows[0] if rows else ()):
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        short = all(len(cell(row[name])) <= _NAME_WIDTH for row in rows)
        table.add_column(
            name.replace("_", " "),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=position == 0 and short,
        )
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    Console(width=wide, markup=False, highlight=False, emoji=False).print(table)


def print_sizes(before: int, after: int, effective_bits: float, model_bits: float) -> None:
    """Size before and after, and both numbers of bits, which only say something together."""
    typer.echo(f"{decimal(before)} -> {decimal(after)}, {before / after:.2f} times smaller")
    typer.echo(f"effective bits {effective_bits:.2f} (block linears), model bits {model_bits:.2f} (whole model)")


def print_notes(notes: Sequence[str]) -> None:
    """What whoever uses the result should know, one line each."""
    for note in notes:
        typer.echo(f"note: {note}")


def cell(value: Any) -> str:
    """One value as a table or line shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        separator = "x" if all(isinstance(item, int) for item in value) else ", "
        return separator.join(map(cell, value))
    return str(value)


@contextmanager
def progress(verb: str, *, shown: bool = True) -> Iterator[Callback]:
    """A bar on standard error where that is a terminal; what libraries print meanwhile goes there too."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[item]}", markup=False),
    )
    console = Console(stderr=True)
    drawn = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
    with drawn as bar, redirect_stdout(sys.stderr):
        task = bar.add_task(verb, total=None, item="")

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, item=name)

        yield update


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
