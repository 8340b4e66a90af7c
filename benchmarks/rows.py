"""Rows of results: benchmarks/results/*.jsonl, one JSON object per line, appended and never edited."""

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).resolve().parent / "results"


class RowError(Exception):
    """A results file or a marked region cannot be used; the message names file and line."""


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file in the order written; none where the file does not exist."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RowError(f"{path}:{number}: not JSON ({error}); mend or delete the line") from error
    return rows


def append(path: Path, row: Row) -> None:
    """Add one row with the date and the versions it was made with, and print it."""
    row |= {"date": datetime.date.today().isoformat()}
    row |= {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers", "lowbit")}
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def done(path: Path, row: Row, key: Sequence[str]) -> bool:
    """Whether the file holds a row with the same values under ``key``."""
    return any(all(found.get(name) == row.get(name) for name in key) for found in read_rows(path))
