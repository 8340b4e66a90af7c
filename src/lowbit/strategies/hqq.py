"""HQQ: half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog)."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit, group_sum, round_trip
from lowbit.strategies.groups import chunked
from lowbit.strategies.mse import least_squares, mse
from lowbit.strategies.registry import strategy

_NORM = 0.7
_BETA = 10.0  # in units of the first step size, so that the result follows the scale of the weights
_GROWTH = 1.01
_ROUNDS = 10
_TINY = 1e-12


@strategy("full", "midrise")
@chunked
def hqq(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """Lower the l_0.7 norm of the error, which forgives a few large errors, instead of its square.

    In turns, the sparse part of the error is found by shrinkage, and the grid is fitted to the weights without it in
    closed form. The best grid by absolute error is kept; it is never worse than that of `mse`.

    The original fits a float zero point to a fixed min-max step. Here zero points are integers, or there is none: the
    turns move a zero point by far less than the half step that would round to another one, so they fit the step size
    instead, and an asymmetric grid keeps the zero point of `mse`. The start is `mse`, too: from min-max the turns end
    in a worse grid, in this norm as well.
    """
    best = mse(blocks, scheme, keep)
    unit = best.scale[:, None, None]
    fit, error, beta = best, torch.full_like(best.scale, torch.inf), _BETA
    for _ in range(_ROUNDS):
        decoded = round_trip(blocks, scheme, fit)
        residual = blocks - decoded
        found = _size(residual, keep)
        better = found < error
        if not better.any():
            break
        best, error = replace(best, scale=torch.where(better, fit.scale, best.scale)), torch.where(better, found, error)
        target = blocks - _shrink(residual.div_(unit), beta).mul_(unit)
        steps = decoded.div_(fit.scale[:, None, None])
        fit = replace(fit, scale=least_squares(target, steps, fit.scale, keep))
        beta *= _GROWTH
    return best


def _shrink(error: torch.Tensor, beta: float) -> torch.Tensor:
    """The sparse part of an error: the generalised soft threshold of the l_p norm; in the error's memory."""
    size = error.abs()
    threshold = size.clamp(min=_TINY).log_().mul_(_NORM - 1).exp_().div_(beta)  # |x|^(p-1) / beta; pow is slower
    return error.sign_().mul_(size.sub_(threshold).clamp_(min=0))


def _size(error: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Absolute error [groups] over the weights that are kept."""
    return group_sum(error.abs() if keep is None else error.abs().mul_(keep))
