"""How flat a loss is around the weights: slices along random directions, and the highest point of a ball."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lowbit.errors import SchemeError
from lowbit.zeroshot.sam import Ball, Target, perturbations, perturbed, requiring_gradients

Loss = Callable[[], torch.Tensor]


@torch.no_grad()
def landscape(
    loss: Loss, targets: Sequence[Target], *, radius: float = 1.0, points: int = 11, axes: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Losses on a slice through the weights, as JSON: ``at`` the places on an axis, ``loss`` the value at each.

    Directions are Gaussian, and each row (filter) of a direction is as long as that row of the weight (Li et al. 2018,
    arXiv 1712.09913), so that a coordinate of 1 means the same for every model. ``axes`` 1 or 2; ``points`` odd, from
    ``-radius`` to ``radius``. The loss at 0 is that of the weights, which are the same afterwards to the last bit.
    """
    if axes not in (1, 2) or points < 3 or points % 2 == 0 or not radius > 0:
        raise SchemeError("a slice has 1 or 2 axes, an odd number of points from 3 and a positive radius")
    generator = torch.Generator().manual_seed(seed)
    directions = [[_direction(target.reference(), generator) for target in targets] for _ in range(axes)]
    at = [radius * (2 * index / (points - 1) - 1) for index in range(points)]
    grid = [(a,) for a in at] if axes == 1 else [(a, b) for a in at for b in at]
    losses = []
    for place in grid:
        changes = [
            sum(factor * part for factor, part in zip(place, parts, strict=True))
            for parts in zip(*directions, strict=True)
        ]
        with perturbed(targets, changes):
            losses.append(float(loss()))
    values = losses if axes == 1 else [losses[start : start + points] for start in range(0, len(losses), points)]
    return {"at": at, "loss": values}


def sharpness(loss: Loss, targets: Sequence[Target], ball: Ball, *, steps: int = 5) -> dict[str, float]:
    """The loss at the weights, the largest one found in ``ball`` around them, and the difference, in that order.

    Found by ``steps`` steps of gradient ascent on the surface of the ball, the first of which is SAM's. The weights are
    the same afterwards to the last bit.
    """
    tensors = [target.tensor for target in targets]
    changes = [torch.zeros_like(tensor) for tensor in tensors]
    found = []
    for _ in range(steps + 1):
        with perturbed(targets, changes), requiring_gradients(tensors):
            value = loss()
            gradients = torch.autograd.grad(value, tensors)
        found.append(float(value.detach()))
        changes = perturbations(targets, gradients, ball)
    return {"loss": found[0], "largest": max(found), "sharpness": max(found) - found[0]}


def _direction(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian direction with rows as long as those of ``weight`` [out, in]."""
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    lengths = torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
    return drawn * (lengths / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True).clamp_min(1e-12))
