"""Rows of CSV, TSV and JSON-lines files, each with the ``path:line`` that an error about it names."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lowbit.data.text import read_text
from lowbit.errors import DataError

Row = tuple[str, list[Any]]


def tsv_rows(path: Path, columns: Sequence[str], header: Sequence[str] | None = None) -> Iterator[Row]:
    """The named columns of a tab-separated file; quotes are text. ``header`` is for a file that has none."""
    # Only "\n" ends a row: sentences contain other characters that str.splitlines takes for line ends.
    lines = read_text(path).rstrip("\r\n").split("\n")
    records = ((number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines, 1))
    return _pick(path, records, columns, header)


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The named columns of a comma-separated file with a header; a quoted field may span lines."""
    return _pick(path, _csv_records(path), columns, None)


def json_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The named keys of a file with one JSON object a line; values keep their JSON type."""
    for number, line in enumerate(read_text(path).rstrip("\r\n").split("\n"), 1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON ({error.msg}); write one JSON object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: not a JSON object; write one object with named values a line")
        for column in columns:
            if column not in record:
                raise DataError(f"{where}: no {column!r}; this row has: {', '.join(record)}")
        yield where, [record[column] for column in columns]


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    # strict: a stray quote is an error here instead of swallowing the rows after it
    reader = csv.reader(io.StringIO(read_text(path).rstrip("\r\n"), newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{number}: broken CSV ({error}); mend the quotes of this row") from error
        yield number, record


def _pick(
    path: Path, records: Iterator[tuple[int, list[str]]], columns: Sequence[str], header: Sequence[str] | None
) -> Iterator[Row]:
    if header is None:
        _, header = next(records)
    for column in columns:
        if header.count(column) != 1:
            raise DataError(
                f"{path}:1: the header names column {column!r} {header.count(column)} times, not once; "
                f"it has: {', '.join(header)}"
            )
    positions = [header.index(column) for column in columns]
    for number, record in records:
        if len(record) != len(header):
            raise DataError(
                f"{path}:{number}: {len(record)} columns instead of {len(header)}; mend or delete this line"
            )
        yield f"{path}:{number}", [record[position] for position in positions]
