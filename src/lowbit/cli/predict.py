"""``lowbit predict``."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import cell, print_json
from lowbit.errors import DataError

Row = str | tuple[str, str]


def predict(
    model: options.Directory,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts, one row each.")] = None,
    adapter: options.Adapter = None,
    file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Rows: .txt with one text a line, or .csv, .tsv, .jsonl."),
    ] = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    batch_size: options.RowsAtOnce = None,
    max_length: options.MaxLength = None,
    json: options.Json = False,
) -> None:
    """Predict on texts, on a file, or on the lines of standard input; one line per row, JSON lines with --json."""
    rows = _rows(texts, file, text, text_pair)
    waiting: deque[Row] = deque()
    answers = lowbit.predict(
        model, _remember(rows, waiting), adapter=adapter, batch_size=batch_size, max_length=max_length
    )
    for answer in answers:
        row = waiting.popleft()
        if json:
            print_json(answer, indent=None)
        else:
            shown = [answer["label"], f"{answer['score']:.3f}"] if "label" in answer else [cell(answer["value"])]
            typer.echo("\t".join([*shown, row if isinstance(row, str) else " | ".join(row)]))


def _rows(texts: list[str] | None, file: Path | None, text: str | None, text_pair: str | None) -> Iterable[Row]:
    """The texts of the command line, of the file, or of standard input."""
    from lowbit.data import load_table, read_text

    if texts and file is not None:
        raise typer.BadParameter("give texts or --input, not both")
    if file is None or file.suffix.lower() == ".txt":
        options.forbid({"--text": text, "--text-pair": text_pair}, "needs --input with a .csv, .tsv or .jsonl file")
    if texts:
        return texts
    if file is None:
        return _lines(sys.stdin.buffer)
    if file.suffix.lower() == ".txt":
        return [line.removesuffix("\r") for line in read_text(file).rstrip("\r\n").split("\n")]
    if text is None:
        raise typer.BadParameter(f"--text must name the column of the text in {file}")
    table = load_table(file, text=text, text_pair=text_pair)
    return table.texts if table.pairs is None else list(zip(table.texts, table.pairs, strict=True))


def _lines(stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input:{number}: not UTF-8 ({error.reason}); send UTF-8") from error


def _remember(rows: Iterable[Row], waiting: deque[Row]) -> Iterator[Row]:
    """Pass rows on as they are asked for, and keep those that have no answer yet."""
    for row in rows:
        waiting.append(row)
        yield row
