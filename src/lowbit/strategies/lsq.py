"""LSQ: the step size from which learned step size quantization starts (Esser et al. 2020, arXiv 1902.08153)."""

from __future__ import annotations

import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, group_sum, limits, mean_and_std
from lowbit.strategies.registry import strategy

_REACH = 3.0  # standard deviations


@strategy("full", "midrise")
def lsq(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """Step 2 mean|w| / sqrt(Qp), Qp being the largest positive level (section 2.1).

    Asymmetric grids have the step of LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576), the larger one of |mean - 3 std| and
    |mean + 3 std| over 2^(b-1), and are centred at the mean.

    A starting point for training step sizes: on its own, `mse` is better.
    """
    if scheme.symmetric:
        count = blocks[0].numel() if keep is None else group_sum(keep.double()).clamp(min=1)
        mean = group_sum(blocks.double().abs()) / count
        return Fit(_or_one(2 * mean / limits(scheme)[1] ** 0.5))
    mean, std = mean_and_std(blocks, keep)
    scale = _or_one((mean.abs() + _REACH * std) / 2 ** (scheme.bits - 1))
    highest = 2**scheme.bits - 1
    zero_point = (highest / 2 - mean / scale).round().clamp(0, highest)
    return Fit(scale, zero_point.to(torch.uint8))


def _or_one(scale: torch.Tensor) -> torch.Tensor:
    """The step sizes as float32, 1 where there is none."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).float()
