"""Fake quantization: linear layers that train in float and compute with what will be stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lowbit.errors import SchemeError
from lowbit.kernels import positive_step, round_inputs
from lowbit.packing import pack
from lowbit.qtensor import QuantizedTensor, check_finite, sparse_rows, tensor_specs
from lowbit.scheme import CODEBOOKS, Scheme
from lowbit.strategies.grid import Fit, decode, encode, group_sum, limits, nearest_codes, to_blocks

_HALF_RANGE = 2.0**-24, 65504.0


class FakeQuantLinear(nn.Module):
    """``y = x Q(W)^T + b`` with a latent float32 W [out, in] and learned step sizes; stands in for ``nn.Linear``.

    It starts from a float ``weight`` [out, in] and any quantization of it: the ``weight`` it computes with is then
    ``tensor.dequantize()``. Trained are ``latent``, ``scale`` (float32, in the shape of ``tensor.scale``), ``bias``
    and, for static activations, ``input_scale`` (float32 [1]). Outliers stay where they are in ``tensor``; their values
    are those of ``latent``, rounded to float16. Where the scheme asks for it, inputs are rounded to 8 bits, per token
    or by ``input_scale``.

    Rounding lets gradients through within the range of the grid, and stops them outside. Step sizes have the gradient
    of LSQ (Esser et al. 2020, arXiv 1902.08153), scaled by 1 / sqrt(n Qp). They are kept positive where they are used,
    not by training their logarithm: a start from stored step sizes is exact, and the gradient is LSQ's own.

    ``offset`` [out, in], if there is one, is added to the quantized weight in ``forward``. The gradient of an offset
    that requires one is that of the quantized weight.

    Codebooks and zero points raise :class:`SchemeError`.
    """

    outliers: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, tensor: QuantizedTensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        if tensor.scheme.levels in CODEBOOKS or not tensor.scheme.symmetric:
            raise SchemeError("only symmetric grids with levels `full` or `midrise` are trained; choose one of them")
        self.scheme, self.shape = tensor.scheme, tensor.shape
        self.out_features, self.in_features = tensor.shape
        self.register_buffer("outliers", None if tensor.outlier_value is None else tensor.outlier_positions())
        self.scale = nn.Parameter(tensor.scale.detach().float().clone())
        step = tensor.input_scale
        self.input_scale = None if step is None else nn.Parameter(step.detach().clone())
        self.latent = nn.Parameter(weight.detach().float().contiguous().clone())
        self.bias = bias
        self.offset: torch.Tensor | None = None
        with torch.no_grad():  # a strategy may choose other codes than the nearest ones
            start = tensor.dequantize()
            self.latent.copy_(torch.where(self.weight == start, self.latent, start))

    @property
    def weight(self) -> torch.Tensor:
        """The quantized float32 weight [out, in], differentiable; made anew at each access."""
        weight: torch.Tensor = _FakeQuant.apply(self.latent, self.scale, self.scheme, self.outliers)
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` float32 [..., in] to [..., out], in the dtype of autocast if that is on."""
        x = round_inputs(x, self.scheme.activations, self.input_scale)
        return F.linear(x, self.weight if self.offset is None else self.weight + self.offset, self.bias)

    @torch.no_grad()
    def step_groups(self, rate: float) -> list[dict[str, Any]]:
        """AdamW's groups of the step sizes, of the weight and of the inputs, beside a ``rate`` of the weights.

        LSQ scales gradients of step sizes so that they change as fast as the weights, each relative to its size. AdamW
        takes that scale away again, so the rate does it: at 8 bits steps are thirty times smaller than weights.
        """
        steps = [step for step in (self.scale, self.input_scale) if step is not None]
        return [{"params": [step], "lr": rate * float(step.mean() / self.latent.abs().mean())} for step in steps]

    @torch.no_grad()
    def pack(self) -> QuantizedTensor:
        """The quantized weight as it is stored; ``pack().dequantize()`` equals ``weight`` bit for bit.

        Values that are not finite, or outliers beyond float16, raise :class:`WeightError`.
        """
        check_finite(self.latent)
        check_finite(self.scale)
        scale = _as_stored(self.scale, self.scheme)
        codes = encode(to_blocks(self.latent, self.scheme), self.scheme, Fit(scale.view(-1)))
        tensors = {"weight": pack(codes.to(torch.uint8), self.scheme.bits), "scale": scale}
        if self.outliers is not None:
            tensors |= sparse_rows(self.latent, self.outliers)
        if self.input_scale is not None:
            check_finite(self.input_scale)
            tensors["input_scale"] = positive_step(self.input_scale)
        specs = tensor_specs(self.scheme, self.shape, 0 if self.outliers is None else self.outliers.numel())
        return QuantizedTensor(
            shape=self.shape, scheme=self.scheme, **{name: value.to(specs[name][0]) for name, value in tensors.items()}
        )

    def extra_repr(self) -> str:
        """Shape and scheme, as ``print(model)`` shows them."""
        return f"out={self.out_features}, in={self.in_features}, scheme={self.scheme}"


class _FakeQuant(torch.autograd.Function):
    """Round to the grid; the backward pass computes the codes again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, latent: torch.Tensor, scale: torch.Tensor, scheme: Scheme, outliers: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(latent, scale, outliers)
        ctx.scheme = scheme
        fit = Fit(_as_stored(scale, scheme).view(-1))
        weight = decode(encode(to_blocks(latent, scheme), scheme, fit), scheme, fit).view(latent.shape)
        if outliers is not None:
            weight.view(-1)[outliers] = latent.view(-1)[outliers].half().float()
        return weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        latent, scale, outliers = ctx.saved_tensors
        scheme: Scheme = ctx.scheme
        grad = grad.contiguous()
        dense, fit = to_blocks(grad, scheme), Fit(_as_stored(scale, scheme).view(-1))
        steps = to_blocks(latent, scheme) / fit.scale[:, None, None]
        grad_latent = _within(dense, steps, scheme)
        # A step's gradient is (level - steps) where steps lie on the grid, and the level, a limit, elsewhere.
        levels = nearest_codes(steps.clone(), scheme, fit).sub_(scheme.offset)
        by_step = levels.mul_(dense).addcmul_(steps, grad_latent, value=-1)
        if outliers is not None:
            grad_latent.view(-1)[outliers] = grad.view(-1)[outliers]
            by_step.view(-1)[outliers] = 0
        summed = group_sum(by_step) / (steps[0].numel() * limits(scheme)[1]) ** 0.5
        return grad_latent.view(latent.shape), summed.view(scale.shape), None, None


def _within(values: torch.Tensor, steps: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The values whose steps lie on the grid or between its levels, 0 for others.

    A comparison and a selection take five times as long. The operation leaves out its own limits, the grid has its.
    """
    negative, positive = limits(scheme)
    low, high = (np.nextafter(np.float32(limit), np.float32(2 * limit)) for limit in (-negative, positive))
    return torch.ops.aten.hardtanh_backward(values, steps, float(low), float(high))


def _as_stored(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Learned step sizes as they are stored, still float32: positive, and with 16 bits for groups."""
    if scheme.granularity == "group":
        return scale.clamp(*_HALF_RANGE).half().float()
    return positive_step(scale)
