"""Activations in 8 bits: what a quantized layer sees of its input."""

from __future__ import annotations

from typing import Any

import torch

_LARGEST = 127


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
