"""Perplexity of a language model on a plain text file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.arch import position_limit
from lowbit.data import TextSize, text_size
from lowbit.errors import SchemeError, UnsupportedModelError
from lowbit.hf import language_kind
from lowbit.loop import Progress, check_sizes, default_device, use_bf16
from lowbit.losses import IGNORED, token_losses
from lowbit.scoring.rows import ROWS, Row, text_room

_MOST = 1024  # by default; a window costs memory for its logits
_UNDECLARED = 512  # by default where a model's configuration names no length, as T5's


@dataclass(frozen=True)
class TextScore:
    """How well a language model predicts a text.

    ``perplexity`` is the exponential of the mean negative log-likelihood of the ``scored`` tokens, out of ``tokens``;
    ``bits_per_byte`` and ``word_perplexity`` spread the mean over the text's UTF-8 bytes and words, which compares
    models with different tokenizers. ``kind`` is ``causal``, ``masked`` or ``seq2seq``.
    """

    kind: str
    window: int
    stride: int
    tokens: int
    scored: int
    perplexity: float
    bits_per_byte: float
    word_perplexity: float


def score_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    sample: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    progress: Progress | None = None,
) -> TextScore:
    """Perplexity of a loaded language model on a UTF-8 text file; :func:`lowbit.perplexity` says what is scored.

    The model is moved to the default device and, unless bf16 autocast is used, to float32. Its mode is left as it was.
    """
    kind = language_kind(model)
    if kind is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is no language model; give a causal, masked or sequence-to-sequence one"
        )
    check_sizes(batch_size, None)
    window, room, stride = _check_window(model, tokenizer, kind, window, stride)
    size = text_size(path, tokenizer)
    chosen = {} if sample is None else {"drawn": _draw(kind, size.tokens, sample, seed)}
    device, was_training = default_device(), model.training
    bf16 = use_bf16(precision, device, model)
    model.to(device, None if bf16 else torch.float32).eval()
    total, scored = 0.0, 0
    for batch in _batches(ROWS[kind](path, tokenizer, room, stride, **chosen), batch_size):
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = _batch_losses(model, kind, batch, tokenizer.pad_token_id)
        total += float(losses.double().sum())
        scored += len(losses)
        if progress is not None:
            progress(scored, size.tokens if sample is None else min(sample, size.tokens), "tokens")
    model.train(was_training)
    return TextScore(kind, window, stride, size.tokens, scored, **_measures(total / scored, size))


def _check_window(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, window: int | None, stride: int | None
) -> tuple[int, int, int]:
    """Window, room for text in it, and stride, by default as wide as the model takes, and half the room."""
    most = position_limit(model)
    declared = most or getattr(model.config, "max_position_embeddings", None) or _UNDECLARED
    chosen = min(declared, _MOST) if window is None else window
    if most is not None and chosen > most:
        raise SchemeError(f"a window of {chosen} tokens does not fit, the model takes {most}; give a smaller one")
    room = text_room(kind, tokenizer, chosen)
    step = max(room // 2, 1) if stride is None else stride
    if not 1 <= step <= room:
        raise SchemeError(f"stride {step} is not from 1 to {room}, the tokens of the text in a window of {chosen}")
    return chosen, room, step


def _draw(kind: str, tokens: int, sample: int, seed: int) -> frozenset[int]:
    """Positions of the tokens to score."""
    if kind != "masked" or sample < 1:
        raise SchemeError(f"cannot score a sample of {sample} tokens; samples of 1 or more are for masked models")
    return frozenset(np.random.default_rng(seed).permutation(tokens)[:sample].tolist())


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def _batch_losses(model: PreTrainedModel, kind: str, rows: list[Row], pad: int) -> torch.Tensor:
    """Negative log-likelihoods float32 [scored] of a batch, padded on the right."""
    inputs = [torch.tensor(row.inputs, device=model.device) for row in rows]
    fields = {
        "input_ids": pad_sequence(inputs, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in inputs], batch_first=True),
    }
    labels = [torch.tensor(row.labels, device=model.device) for row in rows]
    targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    if kind == "seq2seq":
        fields["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(targets)
    return token_losses(model(**fields).logits, targets)


def _measures(mean: float, size: TextSize) -> dict[str, float]:
    """The measures of :class:`TextScore` from a mean negative log-likelihood in nats per token."""
    total = mean * size.tokens
    return {
        "perplexity": _exp(mean),
        "bits_per_byte": total / size.bytes / math.log(2),
        "word_perplexity": _exp(total / size.words),
    }


def _exp(exponent: float) -> float:
    """The exponential, infinite where a float does not reach."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
