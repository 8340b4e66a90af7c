"""Linear layer over a quantized weight, differentiable in the input, the bias, the outlier values and the step sizes.

Reference: ``F.linear(x, tensor.dequantize(x.dtype), bias)``. The difference is memory and time: the backward keeps what
it needs of codes, inputs and outputs only, decodes again, and forms no dense weight gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lowbit.kernels.activations import Origin, origin_of
from lowbit.kernels.cache import WeightCache, unit_weight
from lowbit.qtensor import QuantizedTensor

with warnings.catch_warnings():
    # The first compressed-row tensor of a process announces that their support is in beta.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(1), (1, 1))

_TOKENS = 128  # of a transposed tile on the CPU: few enough for its caches, many enough for fast inner products
_VALUES = 2**18  # of one float32 intermediate: larger ones go through memory that the system must clear first


def quant_linear(
    x: torch.Tensor, tensor: QuantizedTensor, bias: torch.Tensor | None, cache: WeightCache | None = None
) -> torch.Tensor:
    """``x`` [..., in] times the transposed weight [out, in] plus ``bias`` [out], in the dtype of ``x``.

    Under autocast the product runs in the autocast dtype. Gradients reach ``x``, ``bias``, ``tensor.outlier_value`` and
    ``tensor.scale`` where they require them. A ``cache`` of the tensor changes nothing but the time; it serves products
    in its own dtype. While step sizes of rows or of the whole weight are trained, a copy of the output is kept for the
    backward. An ``x`` that remembers its origin is not kept for it, but made again.
    """
    origin = origin_of(x)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if cache is not None and cache.dtype != x.dtype:
        cache = None
    rows = x.reshape(-1, x.shape[-1])
    output: torch.Tensor = _QuantLinear.apply(rows, tensor.outlier_value, tensor.scale, bias, tensor, cache, origin)
    return output.view(*x.shape[:-1], tensor.shape[0])


def outlier_gradient(
    grad: torch.Tensor, x: torch.Tensor, ptr: torch.Tensor, col: torch.Tensor, in_features: int
) -> torch.Tensor:
    """``grad.T @ x`` at the positions of compressed sparse rows only, float32 [outliers].

    ``grad`` [tokens, out] and ``x`` [tokens, in]; the sums run in float32 whatever the inputs are.
    """
    values = torch.zeros(col.numel(), device=grad.device)
    size = (ptr.numel() - 1, in_features)
    found = torch.sparse_csr_tensor(ptr, col.to(torch.int32), values, size, check_invariants=False)
    for rows, columns in zip(_transposed(grad), _transposed(x), strict=True):
        torch.sparse.sampled_addmm(found, rows, columns.t(), out=found)
    return found.values()


def _transposed(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The transpose of ``x`` [tokens, features] in float32, some tokens at a time.

    On the CPU ``sampled_addmm`` copies what does not lie in memory as [features, tokens]. Exchanging channels with
    their groups is the same transposition as ``x.t().contiguous()``, in a kernel that is three times as fast.
    """
    if x.device.type != "cpu":
        yield x.float().t()
        return
    for piece in x.split(_TOKENS * torch.get_num_threads()):
        whole = len(piece) // _TOKENS * _TOKENS
        for part, tokens in ((piece[:whole], _TOKENS), (piece[whole:], len(piece) - whole)):
            if len(part):
                tiles = part.float().reshape(1, len(part) // tokens, 1, -1).permute(0, 3, 1, 2)
                yield from torch.channel_shuffle(tiles, tokens).permute(0, 2, 3, 1).reshape(-1, x.shape[1], tokens)


def bias_gradient(grad: torch.Tensor) -> torch.Tensor:
    """``grad`` [tokens, out] summed over the tokens, [out] in float32 or, of a float64 ``grad``, in float64."""
    rows = grad.new_zeros(grad.shape[1], dtype=torch.promote_types(grad.dtype, torch.float32))
    for part in _pieces(grad):
        rows += part.to(rows.dtype).sum(dim=0)
    return rows


def _pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``x`` [tokens, features] on the CPU some tokens at a time, for intermediates in float32 that fit into caches."""
    if x.device.type != "cpu":
        return (x,)
    return x.split(max(1, _VALUES * torch.get_num_threads() // x.shape[1]))


def scale_gradient(
    grad: torch.Tensor,
    product: torch.Tensor,
    tensor: QuantizedTensor,
    outlier_grad: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of step sizes of rows [out, 1] or of the whole weight [1, 1], none of them 0, float32.

    The decoded weight is linear in its step size s, so that s dL/ds is the inner product of the weight with its
    gradient, which is that of ``product`` with ``grad`` [tokens, out] less the outliers' part, values times
    ``outlier_grad``. ``product`` may have a ``bias`` [out] added to it. Reference: :func:`dense_scale_gradient`.
    """
    rows = torch.zeros(grad.shape[1], device=grad.device)
    for part, output in zip(_pieces(grad), _pieces(product), strict=True):
        rows += (part.float() * (output.float() if bias is None else output.float() - bias)).sum(dim=0)
    if outlier_grad is not None:
        assert tensor.outlier_value is not None
        assert tensor.outlier_ptr is not None
        values = tensor.outlier_value.to(grad.dtype).float()
        rows -= torch.segment_reduce(values * outlier_grad, "sum", offsets=tensor.outlier_ptr.long(), initial=0.0)
    return (rows if tensor.scale.shape[0] > 1 else rows.sum()).view(tensor.scale.shape) / tensor.scale


def dense_scale_gradient(grad: torch.Tensor, x: torch.Tensor, tensor: QuantizedTensor) -> torch.Tensor:
    """Gradient of any step sizes, in their shape, float32: the dense weight gradient times the unit weight.

    ``grad`` [tokens, out] and ``x`` [tokens, in].
    """
    dense = grad.float().t() @ x.float()
    dense.view(-1)[tensor.outlier_positions()] = 0
    groups = (dense * unit_weight(tensor)).view(tensor.shape[0], tensor.scale.shape[1], -1).sum(dim=2)
    return groups if tensor.scale.shape[0] > 1 else groups.sum(dim=0, keepdim=True)


class _QuantLinear(torch.autograd.Function):
    """Product of ``x`` [tokens, in] with a decoded weight; what is trained is an argument so that autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        values: torch.Tensor | None,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        tensor: QuantizedTensor,
        cache: WeightCache | None,
        origin: Origin | None,
    ) -> torch.Tensor:
        bias = None if bias is None else bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            output = F.linear(x, _weight(tensor, cache, x.dtype), bias)
        _, needs_values, needs_scale, *_ = ctx.needs_input_grad
        kept_x: torch.Tensor | None = None
        if needs_values or needs_scale:
            kept_x = x if origin is None else origin.source
        ctx.save_for_backward(kept_x, values, scale, bias)
        # Not saved like the others: that would refuse models that change it in place, as DeBERTa does.
        by_output = needs_scale and scale.shape[1] == 1
        ctx.output, ctx.version = (output.detach(), output._version) if by_output else (None, 0)
        ctx.tensor = replace(tensor, outlier_value=None, scale=torch.empty(0))
        ctx.cache, ctx.remake = cache, None if origin is None else origin.function
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, scale, bias = ctx.saved_tensors
        tensor: QuantizedTensor = replace(ctx.tensor, outlier_value=values, scale=scale)
        needs_x, needs_values, needs_scale, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_values = grad_scale = grad_bias = None
        with torch.autocast(grad.device.type, enabled=False):
            if needs_x:
                grad_x = grad @ _weight(tensor, ctx.cache, grad.dtype)
            if needs_bias:
                grad_bias = bias_gradient(grad)
            if x is not None and ctx.remake is not None:
                x = ctx.remake(x).reshape(-1, tensor.shape[1]).to(grad.dtype)
            if values is not None and (needs_values or needs_scale):
                assert tensor.outlier_ptr is not None
                assert tensor.outlier_col is not None
                grad_values = outlier_gradient(grad, x, tensor.outlier_ptr, tensor.outlier_col, x.shape[1])
            if needs_scale:
                if ctx.output is None or bool((scale == 0).any()):
                    grad_scale = dense_scale_gradient(grad, x, tensor)
                else:
                    if ctx.output._version != ctx.version:  # the model has changed the output since: make it again
                        ctx.output = F.linear(x, _weight(tensor, ctx.cache, x.dtype), bias)
                    grad_scale = scale_gradient(grad, ctx.output, tensor, grad_values, bias)
        return grad_x, grad_values if needs_values else None, grad_scale, grad_bias, None, None, None


def _weight(tensor: QuantizedTensor, cache: WeightCache | None, dtype: torch.dtype) -> torch.Tensor:
    return tensor.dequantize(dtype) if cache is None else cache.weight(tensor)
