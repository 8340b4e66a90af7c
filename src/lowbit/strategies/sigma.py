"""Sigma: PreQuant's Gaussian clip (arXiv 2306.00014), the range tied to the standard deviation."""

from __future__ import annotations

import torch

from lowbit.errors import SchemeError
from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, from_range, mean_and_std
from lowbit.strategies.registry import strategy


@strategy("full", "midrise")
def sigma(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None, *, width: float = 6.0) -> Fit:
    """A grid ``width`` standard deviations wide: 6 clips at three sigma, 4 bits then step 0.4 sigma.

    Symmetric grids are centred at zero, asymmetric ones at the mean.
    """
    if width <= 0:
        raise SchemeError(f"strategy 'sigma' needs a positive width, not {width}")
    mean, std = mean_and_std(blocks, keep)
    if scheme.symmetric:
        scale = (width * std / (2**scheme.bits - 1)).float()
        return Fit(torch.where(scale > 0, scale, torch.ones_like(scale)))
    return from_range((mean - width / 2 * std).float(), (mean + width / 2 * std).float(), scheme)
