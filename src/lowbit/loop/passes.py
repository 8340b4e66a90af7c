"""Forward passes: random states, precision, row lengths, logits of many rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.arch import position_limit
from lowbit.calibration import evaluating
from lowbit.errors import DataError, SchemeError

PRECISIONS = ("auto", "fp32", "bf16")
_TOKENS = 1024  # a batch; on CPUs larger ones leave the caches, and smaller ones the threads idle
Progress = Callable[[int, int, str], None]


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch, CUDA, numpy and ``random`` inside the block and give the caller's states back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(precision: str, device: torch.device, model: PreTrainedModel | None = None) -> bool:
    """Whether to run under bf16 autocast. ``auto`` asks for bf16 instructions: emulation is far slower than fp32.

    It is fp32 for a ``model`` that cannot run under autocast: transformers' first DeBERTa masks scores with the lowest
    number of float32, which bf16 does not have.
    """
    if precision not in PRECISIONS:
        raise SchemeError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision == "bf16"
    if model is not None and model.config.model_type == "deberta":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bf16."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def trainable_attention(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Inside the block attention has a backward pass that is as fast as its forward pass.

    The one of torch's fused attention for CPUs takes up to ten times as long in bf16, so attention is computed there in
    plain products. Nothing changes elsewhere.
    """
    return sdpa_kernel(SDPBackend.MATH) if bf16 and device.type == "cpu" else nullcontext()


def length_order(features: Sequence[dict[str, Any]]) -> list[int]:
    """Indices of the rows, longest first, so that a batch holds rows of similar length."""
    return sorted(range(len(features)), key=lambda row: (-len(features[row]["input_ids"]), row))


def batches(features: Sequence[dict[str, Any]], batch_size: int | None) -> Iterator[list[int]]:
    """Indices of the rows in batches of similar lengths, longest first: each row once.

    ``batch_size`` rows a batch, or, where it is None, as many as its padded rows have at most 1,024 tokens; a
    longer row is a batch of its own.
    """
    order = length_order(features)
    while order:
        size = batch_size or max(_TOKENS // max(len(features[order[0]]["input_ids"]), 1), 1)
        yield order[:size]
        order = order[size:]


def check_lengths(model: PreTrainedModel, features: Sequence[dict[str, Any]]) -> None:
    """Raise :class:`DataError` where a tokenized row is longer than the model has positions."""
    positions = position_limit(model)
    if positions is None:
        return
    longest = max(len(row["input_ids"]) for row in features)
    if longest > positions:
        raise DataError(f"a row has {longest} tokens, the model takes {positions}; lower the maximum length to that")


def check_sizes(batch_size: int | None, max_length: int | None) -> None:
    """Raise :class:`SchemeError` for a batch size or maximum length that is not positive."""
    if any(size is not None and size < 1 for size in (batch_size, max_length)):
        raise SchemeError(f"batch size {batch_size} and maximum length {max_length} must be positive")


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[dict[str, Any]],
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits float32 [rows, labels] of tokenized rows, in their order; the model's mode is left as it was.

    :func:`batches` says what stands together in a batch.
    """
    check_lengths(model, features)
    device = model.device
    collate = DataCollatorWithPadding(tokenizer)
    order: list[int] = []
    logits: list[torch.Tensor] = []
    with evaluating(model):
        for chosen in batches(features, batch_size):
            if progress is not None:
                progress(len(order), len(features), "rows")
            rows = [{k: v for k, v in features[row].items() if k != "labels"} for row in chosen]
            batch = collate(rows).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16(precision, device, model)):
                logits.append(model(**batch).logits.float().cpu())
            order += chosen
    if progress is not None:
        progress(len(order), len(features), "rows")
    sorted_logits = torch.cat(logits)
    restored = torch.empty_like(sorted_logits)
    restored[torch.tensor(order)] = sorted_logits
    return restored
