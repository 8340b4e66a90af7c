"""What a quantized layer sees of its input: activations in 8 bits, and how they were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_LARGEST = 127


@dataclass(frozen=True)
class Origin:
    """A tensor is ``function(source)``, and can be made again from what autograd keeps anyway."""

    function: Callable[[torch.Tensor], torch.Tensor]
    source: torch.Tensor
    version: int  # of the tensor: it counts changes in place


def note_origin(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """A forward hook for an activation function: an output with a gradient remembers what it was made of."""
    if output.requires_grad:
        output._lowbit_origin = Origin(module.forward, arguments[0], output._version)  # type: ignore[attr-defined]


def origin_of(x: torch.Tensor) -> Origin | None:
    """What :func:`note_origin` noted on a tensor that has not changed since."""
    origin: Origin | None = getattr(x, "_lowbit_origin", None)
    return origin if origin is None or origin.version == x._version else None


def round_tokens(x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., in] on 255 symmetric levels of its own for each token, in its dtype; computed in float32.

    The step of a token is its largest magnitude over 127. Gradients pass as if nothing were rounded (straight-through
    estimator, Bengio et al. 2013, arXiv 1308.3432): no value is clipped.
    """
    rounded: torch.Tensor = _RoundTokens.apply(x)
    return rounded


class _RoundTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        step = wide.abs().amax(dim=-1, keepdim=True) / _LARGEST
        step = torch.where(step > 0, step, torch.ones_like(step))
        return (wide / step).round_().mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad
