"""A user's own file of labelled text."""

from collections.abc import Sequence
from pathlib import Path

from lowbit.data.examples import Examples
from lowbit.data.labels import label_text, to_class, to_score
from lowbit.data.rows import Row, csv_rows, json_rows, tsv_rows
from lowbit.errors import DataError

_READERS = {".csv": csv_rows, ".tsv": tsv_rows, ".jsonl": json_rows, ".json-lines": json_rows}


def load_table(
    path: str | Path,
    *,
    text: str,
    text_pair: str | None = None,
    label: str | None = None,
    label_names: Sequence[str] | None = None,
    regression: bool = False,
) -> Examples:
    """The named columns of a .csv, .tsv (unquoted, like GLUE) or .jsonl file.

    Without ``label_names`` the classes are the sorted distinct labels of this file: give the names of the
    training file when reading another one. ``regression`` makes the labels floats. Integers in JSON count as
    label text. Raises :class:`DataError` naming file and line.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"{path}: unknown suffix {suffix!r}; use one of {', '.join(_READERS)}")
    if regression and label_names is not None:
        raise DataError(f"{path}: regression has no label names; give one or the other")
    columns = [column for column in (text, text_pair, label) if column is not None]
    rows = list(_READERS[suffix](path, columns))
    if not rows:
        raise DataError(f"{path}: no row after the header; give a file with data")
    names = None if label_names is None else tuple(label_names)
    if label is not None and names is None and not regression:
        names = tuple(sorted({label_text(values[-1], where) for where, values in rows}))
    return Examples(
        texts=[_text(where, values[0]) for where, values in rows],
        pairs=None if text_pair is None else [_text(where, values[1]) for where, values in rows],
        labels=None if label is None else _labels(rows, names),
        label_names=names,
        source=str(path),
    )


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {value!r} is no text; write a JSON string")
    return value


def _labels(rows: list[Row], names: tuple[str, ...] | None) -> list[int] | list[float]:
    if names is None:
        return [to_score(values[-1], where) for where, values in rows]
    return [to_class(values[-1], names, where) for where, values in rows]
