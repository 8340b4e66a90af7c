"""Text files."""

from collections.abc import Iterator
from pathlib import Path

from lowbit.errors import DataError

_PIECE = 2**18  # bytes: large enough for tokenizers to be quick, small enough for any memory


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 text file, line ends as they are stored, without a byte order mark.

    Raises :class:`DataError` where the file is missing, empty or not UTF-8 (naming the line).
    """
    return "".join(text_pieces(path))


def text_pieces(path: str | Path) -> Iterator[str]:
    """The text of :func:`read_text` in pieces of whole lines, about 256 KiB each; the same errors."""
    number, blank = 0, True
    try:
        with Path(path).open("rb") as file:
            while stored := file.readlines(_PIECE):
                piece = _decode(path, b"".join(stored), number)
                number += len(stored)
                blank = blank and not piece.strip()
                yield piece
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a text file") from error
    if blank:
        raise DataError(f"{path}: the file is empty; give a file with text in it")


def _decode(path: str | Path, stored: bytes, lines_before: int) -> str:
    try:
        return stored.decode("utf-8" if lines_before else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = lines_before + error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
