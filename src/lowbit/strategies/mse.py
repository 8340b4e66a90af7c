"""MSE: the step size with the smallest squared error of the weights."""

from __future__ import annotations

import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import block_range, encode, from_range, group_sum, round_trip
from lowbit.strategies.registry import Parameters, strategy
from lowbit.strategies.sigma import sigma

_RATIOS = tuple(0.15 ** (step / 12) for step in range(13))  # 1 down to 0.15 of the min-max range
_REFINEMENTS = 4


@strategy
def mse(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Parameters:
    """Search thirteen clip ratios and the Gaussian clip, then alternate codes and least-squares step (symmetric only).

    The Gaussian clip serves groups whose farthest weight is so far that the best clip lies below every ratio.
    Each refinement can only lower the error: for fixed codes c the best step is <w, c> / <c, c>, and for a
    fixed step the nearest codes are best.
    """
    low, high = block_range(blocks)
    candidates = [from_range(low * ratio, high * ratio, scheme) for ratio in _RATIOS]
    candidates.append(sigma(blocks, scheme, keep))
    if scheme.levels != "midrise":
        keep = None  # zero lies on the grid, so the zeroed outliers cost nothing
    scale, zero_point = candidates[0]
    error = _error(blocks, scheme, scale, zero_point, keep)
    for candidate, candidate_zero in candidates[1:]:
        candidate_error = _error(blocks, scheme, candidate, candidate_zero, keep)
        better = candidate_error < error
        scale = torch.where(better, candidate, scale)
        error = torch.where(better, candidate_error, error)
        if zero_point is not None and candidate_zero is not None:
            zero_point = torch.where(better, candidate_zero, zero_point)
    if zero_point is not None:
        return scale, zero_point
    for _ in range(_REFINEMENTS):
        candidate = _least_squares(blocks, scheme, scale, keep)
        candidate_error = _error(blocks, scheme, candidate, None, keep)
        better = candidate_error < error
        scale = torch.where(better, candidate, scale)
        error = torch.where(better, candidate_error, error)
    return scale, None


def _error(
    blocks: torch.Tensor,
    scheme: Scheme,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    keep: torch.Tensor | None,
) -> torch.Tensor:
    """Squared error [groups] over the weights that are kept."""
    difference = round_trip(blocks, scheme, scale, zero_point).sub_(blocks)
    if keep is not None:
        difference.mul_(keep)
    return group_sum(difference.square_())


def _least_squares(
    blocks: torch.Tensor, scheme: Scheme, scale: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """The best step [groups] for the codes that ``scale`` gives; ``scale`` itself where all codes are zero."""
    codes = encode(blocks, scheme, scale, None).sub_(scheme.offset)
    if keep is not None:
        codes.mul_(keep)
    correlation = group_sum(blocks * codes)
    energy = group_sum(codes.square_())
    return torch.where((energy > 0) & (correlation > 0), correlation / energy.clamp(min=1e-30), scale)
