"""Percentile: a grid that clips a fixed share of the weights (Wu et al. 2020, arXiv 2004.09602)."""

from __future__ import annotations

import torch

from lowbit.errors import SchemeError
from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, from_range
from lowbit.strategies.groups import chunked, sorted_groups
from lowbit.strategies.registry import strategy


@strategy("full", "midrise")
@chunked
def percentile(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None, *, percent: float = 99.5) -> Fit:
    """A grid that reaches as far as the ``percent`` smallest magnitudes; what lies beyond is clipped.

    Asymmetric grids leave out half of the rest at either end. The limits are weights themselves: the rank is rounded
    up, nothing is interpolated.
    """
    if not 0 < percent <= 100:
        raise SchemeError(f"strategy 'percentile' needs a percent above 0 and up to 100, not {percent}")
    if scheme.symmetric:
        values, count = sorted_groups(blocks.abs(), keep)
        reach = _value(values, count, percent)
        return from_range(-reach, reach, scheme)
    values, count = sorted_groups(blocks, keep)
    backwards, _ = sorted_groups(-blocks, keep)
    tail = 50 + percent / 2
    return from_range(-_value(backwards, count, tail), _value(values, count, tail), scheme)


def _value(values: torch.Tensor, count: torch.Tensor, percent: float) -> torch.Tensor:
    """The value [groups] of ascending ones [groups, n] that ``percent`` of the first ``count`` do not exceed.

    Zero for a group without weights.
    """
    rank = (count * (percent / 100)).ceil().long().clamp(min=1)
    found = values.gather(1, rank[:, None] - 1).squeeze(1)
    return torch.where(count > 0, found, torch.zeros_like(found))
