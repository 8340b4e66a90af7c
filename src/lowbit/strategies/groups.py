"""The groups of a weight: a few at a time, and sorted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit

_CHUNK = 1 << 18  # weights; what a strategy makes of them still fits the processor's cache


def chunked(find: Callable[..., Fit]) -> Callable[..., Fit]:
    """Let a strategy whose groups do not depend on each other see only a few of them at a time.

    The result is the same; on a processor it comes much faster, in little memory.
    """

    @functools.wraps(find)
    def run(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None, **options: Any) -> Fit:
        size = max(1, _CHUNK // blocks[0].numel())
        fits = []
        for start in range(0, blocks.shape[0], size):
            part = slice(start, start + size)
            fits.append(find(blocks[part], scheme, None if keep is None else keep[part], **options))
        return _joined(fits)

    return run


def _joined(fits: list[Fit]) -> Fit:
    """One fit of the fits of consecutive groups."""
    parts: dict[str, Any] = {}
    for field in fields(Fit):
        values = [getattr(fit, field.name) for fit in fits]
        parts[field.name] = None if values[0] is None else torch.cat(values)
    return Fit(**parts)


def sorted_groups(blocks: torch.Tensor, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that are kept, ascending, [groups, n], and their number per group, int64 [groups].

    Infinity fills the places of the others, at the end of each row.
    """
    flat = blocks.reshape(blocks.shape[0], -1)
    if keep is None:
        count = torch.full((flat.shape[0],), flat.shape[1], device=flat.device)
    else:
        kept = keep.reshape(flat.shape)
        flat, count = flat.masked_fill(~kept, torch.inf), kept.sum(dim=1)
    if flat.device.type == "cpu":  # numpy sorts ten times faster than torch does
        return torch.from_numpy(np.sort(flat.numpy(), axis=1)), count
    return flat.sort(dim=1).values, count
