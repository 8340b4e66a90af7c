"""Min-max: the grid reaches the largest weight, nothing is clipped."""

from __future__ import annotations

import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, block_range, from_range
from lowbit.strategies.registry import strategy


@strategy("full", "midrise")
def minmax(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """Smallest step that clips nothing. Outliers come in as zero and so do not stretch the grid."""
    return from_range(*block_range(blocks), scheme)
