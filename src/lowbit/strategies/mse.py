"""MSE: the step size with the smallest squared error of the weights."""

from __future__ import annotations

import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, block_range, encode, from_range, group_sum, round_trip
from lowbit.strategies.groups import chunked
from lowbit.strategies.registry import strategy
from lowbit.strategies.sigma import sigma

_RATIOS = tuple(0.15 ** (step / 12) for step in range(13))  # 1 down to 0.15 of the min-max range
_REFINEMENTS = 4


@strategy("full", "midrise")
@chunked
def mse(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
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
    best, error = candidates[0], squared_error(blocks, scheme, candidates[0], keep)
    for candidate in candidates[1:]:
        best, error = _better(blocks, scheme, best, error, candidate, keep)
    if best.zero_point is not None:
        return best
    for _ in range(_REFINEMENTS):
        steps = encode(blocks, scheme, best).sub_(scheme.offset)
        candidate = Fit(least_squares(blocks, steps, best.scale, keep))
        best, error = _better(blocks, scheme, best, error, candidate, keep)
    return best


def squared_error(blocks: torch.Tensor, scheme: Scheme, fit: Fit, keep: torch.Tensor | None) -> torch.Tensor:
    """Squared error [groups] over the weights that are kept."""
    difference = round_trip(blocks, scheme, fit).sub_(blocks)
    if keep is not None:
        difference.mul_(keep)
    return group_sum(difference.square_())


def _better(
    blocks: torch.Tensor, scheme: Scheme, best: Fit, error: torch.Tensor, other: Fit, keep: torch.Tensor | None
) -> tuple[Fit, torch.Tensor]:
    """Group by group the fit with the smaller error, and that error [groups]."""
    other_error = squared_error(blocks, scheme, other, keep)
    better = other_error < error
    zero_point = None
    if best.zero_point is not None and other.zero_point is not None:
        zero_point = torch.where(better, other.zero_point, best.zero_point)
    return Fit(torch.where(better, other.scale, best.scale), zero_point), torch.where(better, other_error, error)


def least_squares(
    blocks: torch.Tensor, steps: torch.Tensor, scale: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """The best step size [groups] for weights that are to become ``steps`` times it; ``scale`` where all are zero."""
    if keep is not None:
        steps = steps * keep
    correlation = group_sum(blocks * steps)
    energy = group_sum(steps.square())
    return torch.where((energy > 0) & (correlation > 0), correlation / energy.clamp(min=1e-30), scale)
