"""Text files."""

from pathlib import Path

from lowbit.errors import DataError


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 text file, line ends as they are stored, without a byte order mark.

    Raises :class:`DataError` where the file is missing, empty or not UTF-8 (naming the line).
    """
    try:
        stored = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a text file") from error
    try:
        text = stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; give a file with text in it")
    return text
