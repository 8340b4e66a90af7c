"""The perturbation of sharpness-aware minimisation (SAM, arXiv 2010.01412; ASAM, arXiv 2102.11600)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lowbit.errors import SchemeError

_SHORTEST = 1e-12  # a gradient of length 0 gives no perturbation instead of NaN


@dataclass(frozen=True)
class Ball:
    """How far the weights are perturbed: ``rho``, along the gradient; 0 switches the perturbation off.

    ``per_tensor``: each target has a ball of its own instead of one ball for all. ``adaptive``: lengths are measured in
    units of each single weight (ASAM), ``e = rho w^2 g / ||w g||``; otherwise ``e = rho g / ||g||`` (SAM).
    ``relative``: the radius is ``rho`` times the length of the weights, measured alike: ``||w||``, or for ASAM the
    square root of how many are not zero. A negative or non-finite ``rho`` raises :class:`SchemeError`.
    """

    rho: float = 0.05
    per_tensor: bool = False
    adaptive: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho < float("inf"):
            raise SchemeError(f"rho {self.rho} is no radius; use 0 or a positive number")


@dataclass(frozen=True, eq=False)
class Target:
    """A weight that is perturbed while a gradient is taken.

    Either ``tensor`` is that weight itself, a leaf; or ``tensor`` is an offset, a leaf of the weight's shape that is
    zero between steps and that the model adds to the weight, and ``weight`` gives the weight without it. The second
    form reaches weights that are not leaves: where a module computes with ``quantize(latent) + offset``, its
    *quantized* weight is perturbed, and the gradient of the offset is that of the quantized weight.
    """

    tensor: torch.Tensor
    weight: Callable[[], torch.Tensor] | None = None

    def reference(self) -> torch.Tensor:
        """The weight as it is without a perturbation."""
        return self.tensor if self.weight is None else self.weight()


@torch.no_grad()
def perturbations(targets: Sequence[Target], gradients: Sequence[torch.Tensor], ball: Ball) -> list[torch.Tensor]:
    """What to add to each target to raise the loss most within the ball, to first order."""
    directions, lengths, extents = [], [], []
    for target, gradient in zip(targets, gradients, strict=True):
        direction, length, extent = _measured(target, gradient, ball)
        directions.append(direction)
        lengths.append(length)
        extents.append(extent)
    length, extent = torch.stack(lengths), torch.stack(extents)
    if not ball.per_tensor:
        length, extent = length.norm().expand_as(length), extent.norm().expand_as(extent)
    factors = ball.rho * (extent if ball.relative else 1.0) / length.clamp_min(_SHORTEST)
    return [direction * factor for direction, factor in zip(directions, factors.unbind(), strict=True)]


def _measured(target: Target, gradient: torch.Tensor, ball: Ball) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The direction of one target's perturbation, the length of its gradient and that of its weight."""
    if ball.adaptive:
        weight = target.reference()
        return weight.square() * gradient, norm(weight * gradient), norm((weight != 0).to(gradient.dtype))
    length = norm(gradient)
    return gradient, length, norm(target.reference()) if ball.relative else length


def norm(tensor: torch.Tensor) -> torch.Tensor:
    """Euclidean norm, a scalar of at least float32."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def perturbed(targets: Sequence[Target], changes: Sequence[torch.Tensor]) -> Iterator[None]:
    """Add to each target its change inside the block; the same bytes as before afterwards."""
    kept = [target.tensor.detach().clone() if target.weight is None else None for target in targets]
    try:
        with torch.no_grad():
            for target, change in zip(targets, changes, strict=True):
                target.tensor.add_(change)
        yield
    finally:
        with torch.no_grad():
            for target, before in zip(targets, kept, strict=True):
                target.tensor.zero_() if before is None else target.tensor.copy_(before)


@contextmanager
def requiring_gradients(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside the block every tensor asks for a gradient; those that did not before do not afterwards."""
    silent = [tensor for tensor in tensors if not tensor.requires_grad]
    try:
        for tensor in silent:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in silent:
            tensor.requires_grad_(False)
