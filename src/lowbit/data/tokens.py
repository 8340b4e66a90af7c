"""A text file as one sequence of token ids: its size, windows to score and blocks to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.data.text import text_pieces
from lowbit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextSize:
    """Tokens without special ones, words (between white space) and UTF-8 bytes of a text file."""

    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Window:
    """``ids[first:last]`` are scored, the ids around them are context; ``start`` is the position of ``ids[0]``."""

    ids: list[int]
    first: int
    last: int
    start: int


def text_size(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> TextSize:
    """The size of a UTF-8 text file, read in pieces; one without tokens raises :class:`DataError`."""
    tokens = words = size = 0
    for piece in text_pieces(path):
        tokens += len(_ids(piece, tokenizer))
        words += len(piece.split())
        size += len(piece.encode())
    if not tokens:
        raise DataError(f"{path}: the tokenizer finds no token in it; give a file with text in it")
    return TextSize(tokens, words, size)


def token_windows(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, *, before: int, scored: int, after: int = 0
) -> Iterator[Window]:
    """Windows that together score every token of a text file exactly once, in its order.

    Each scores the next ``scored`` tokens (the last one what is left) and shows up to ``before`` and ``after`` tokens
    beside them. The file is tokenized in pieces of whole lines, so a tokenizer that joins tokens across line ends sees
    an end every 256 KiB.
    """
    ids: list[int] = []
    start = position = 0  # of the first of ``ids``, and of the next token to score
    for piece in text_pieces(path):
        drop = max(position - before - start, 0)
        ids, start = ids[drop:] + _ids(piece, tokenizer), start + drop
        while start + len(ids) >= position + scored + after:
            yield _window(ids, start, position, (before, scored, after))
            position += scored
    while position < start + len(ids):
        yield _window(ids, start, position, (before, scored, after))
        position += scored


def token_blocks(path: str | Path, tokenizer: PreTrainedTokenizerBase, length: int) -> list[dict[str, list[int]]]:
    """A text file cut into rows of ``length`` tokens, their ``labels`` the same ids; what is left over is dropped.

    A text of less than one row raises :class:`DataError`.
    """
    windows = token_windows(path, tokenizer, before=0, scored=length)
    blocks = [window.ids for window in windows if len(window.ids) == length]
    if not blocks:
        raise DataError(f"{path} has fewer than {length} tokens; give more text or lower the maximum length")
    return [{"input_ids": ids, "attention_mask": [1] * length, "labels": list(ids)} for ids in blocks]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after one text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _window(ids: list[int], start: int, position: int, widths: tuple[int, int, int]) -> Window:
    """The window that scores from ``position`` on, out of ``ids`` that begin at ``start``."""
    before, scored, after = widths
    first = max(position - before - start, 0)
    context = position - start - first
    shown = ids[first : position - start + scored + after]
    return Window(shown, context, min(context + scored, len(shown)), start + first)
