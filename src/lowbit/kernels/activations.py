"""What a quantized layer sees of its input: activations in 8 bits, and how they were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LARGEST_INPUT = 127  # code
_POSITIVE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


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
        largest = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True))
        step = largest.float() / LARGEST_INPUT
        step = torch.where(step > 0, step, torch.ones_like(step))
        return (x.float() / step).round_().mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def round_static(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """``x`` [..., in] on the 255 levels from -127 to 127 times ``step`` float32 [1], in its dtype; computed in float32.

    What lies beyond the levels is clipped, and gets no gradient. The gradient of the step is that of LSQ (Esser et al.
    2020, arXiv 1902.08153), scaled by 1 / sqrt(127 in). The step is used as :func:`positive_step` gives it.
    """
    rounded: torch.Tensor = _RoundStatic.apply(x, step)
    return rounded


def round_inputs(x: torch.Tensor, activations: str, step: torch.Tensor | None) -> torch.Tensor:
    """``x`` as a layer with such ``activations`` sees it: as it is, rounded per token, or by its static ``step``."""
    if activations == "dynamic":
        return round_tokens(x)
    return x if step is None else round_static(x, step)


def positive_step(step: torch.Tensor) -> torch.Tensor:
    """A learned float32 step size as it is used and stored: training may bring it to zero or below."""
    return step.clamp(*_POSITIVE)


class _RoundStatic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, step)
        used = positive_step(step)
        return (x.float() / used).round_().clamp_(-LARGEST_INPUT, LARGEST_INPUT).mul_(used).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, step = ctx.saved_tensors
        steps = x.float() / positive_step(step)
        inside = steps.abs() <= LARGEST_INPUT
        if not ctx.needs_input_grad[1]:
            return grad * inside, None
        levels = steps.round().clamp_(-LARGEST_INPUT, LARGEST_INPUT)
        total = (grad.float() * (levels - steps.masked_fill_(~inside, 0))).sum()
        return grad * inside, (total / (LARGEST_INPUT * x.shape[-1]) ** 0.5).view(step.shape)
