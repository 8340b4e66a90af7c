"""Windows of a text as rows that a language model scores: causal, masked, sequence to sequence."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lowbit.data import special_tokens, token_windows
from lowbit.errors import CheckpointError
from lowbit.losses import IGNORED


@dataclass(frozen=True)
class Row:
    """``inputs`` as the model (its encoder) takes them; ``labels`` by position, of the decoder if there is one."""

    inputs: list[int]
    labels: list[int]


def text_room(kind: str, tokenizer: PreTrainedTokenizerBase, window: int) -> int:
    """Tokens of the text that a window has room for, beside special tokens."""
    return window if kind == "causal" else window - sum(map(len, special_tokens(tokenizer)))


def causal_rows(path: Path, tokenizer: PreTrainedTokenizerBase, room: int, stride: int) -> Iterator[Row]:
    """Each token is predicted from those before it, the first one from what stands before a text."""
    start = _start_token(tokenizer)
    for window in token_windows(path, tokenizer, before=room - stride + 1, scored=stride):
        ids = [start, *window.ids] if window.start == 0 else window.ids
        scored = window.last - window.first
        labels = [IGNORED] * (len(ids) - 1 - scored) + ids[len(ids) - scored :]
        yield Row(ids[:-1][-room:], labels[-room:])


def masked_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, room: int, stride: int, drawn: Container[int] | None = None
) -> Iterator[Row]:
    """One row for each token (at the positions ``drawn``), in which it is masked; context lies on both sides."""
    if tokenizer.mask_token_id is None:
        raise CheckpointError("the tokenizer has no mask token; name it, as in `mask_token` of tokenizer_config.json")
    left, right = special_tokens(tokenizer)
    before = (room - stride) // 2
    for window in token_windows(path, tokenizer, before=before, scored=stride, after=room - stride - before):
        for position in range(window.first, window.last):
            if drawn is not None and window.start + position not in drawn:
                continue
            inputs = [*left, *window.ids, *right]
            labels = [IGNORED] * len(inputs)
            labels[len(left) + position] = window.ids[position]
            inputs[len(left) + position] = tokenizer.mask_token_id
            yield Row(inputs, labels)


def seq2seq_rows(path: Path, tokenizer: PreTrainedTokenizerBase, room: int, stride: int) -> Iterator[Row]:
    """The encoder sees the first part of a window, the decoder predicts the rest token by token."""
    left, right = special_tokens(tokenizer)
    for window in token_windows(path, tokenizer, before=room - stride, scored=stride):
        yield Row([*left, *window.ids[: window.first], *right], window.ids[window.first :])


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the tokenizer puts before a text, else its start token, else its end token."""
    candidates = [*special_tokens(tokenizer)[0][-1:], tokenizer.bos_token_id, tokenizer.eos_token_id]
    for token in candidates:
        if token is not None:
            return token
    raise CheckpointError("the tokenizer has neither a start nor an end token for a text to begin with; add one")


ROWS: dict[str, Callable[..., Iterator[Row]]] = {"causal": causal_rows, "masked": masked_rows, "seq2seq": seq2seq_rows}
