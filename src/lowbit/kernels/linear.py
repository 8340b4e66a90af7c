"""Linear layer over a quantized weight, differentiable in the input, the outlier values and the step sizes.

Reference: ``F.linear(x, tensor.dequantize(x.dtype), bias)``. The difference is memory and time: the backward
keeps codes and inputs only, unpacks again, and never forms the dense weight gradient for the outliers.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from lowbit.qtensor import QuantizedTensor

with warnings.catch_warnings():
    # The first compressed-row tensor of a process announces that their support is in beta.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(1), (1, 1))


def quant_linear(x: torch.Tensor, tensor: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` [..., in] times the transposed weight [out, in] plus ``bias`` [out], in the dtype of ``x``.

    Under autocast the product runs in the autocast dtype. Gradients reach ``x``, ``bias``,
    ``tensor.outlier_value`` and ``tensor.scale`` where they require them.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    product: torch.Tensor = _QuantLinear.apply(x, tensor.outlier_value, tensor.scale, tensor)
    return product if bias is None else product + bias.to(product.dtype)


def outlier_gradient(
    grad: torch.Tensor, x: torch.Tensor, ptr: torch.Tensor, col: torch.Tensor, in_features: int
) -> torch.Tensor:
    """``grad.T @ x`` at the positions of compressed sparse rows only, float32 [outliers].

    ``grad`` [tokens, out] and ``x`` [tokens, in]; the sums run in float32 whatever the inputs are.
    """
    pattern = torch.sparse_csr_tensor(
        ptr,
        col.to(torch.int32),
        torch.zeros(col.numel(), device=grad.device),
        (ptr.numel() - 1, in_features),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, grad.float().t(), x.float(), beta=0.0).values()


class _QuantLinear(torch.autograd.Function):
    """Product with an unpacked weight; the values and step sizes are arguments so that autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        values: torch.Tensor | None,
        scale: torch.Tensor,
        tensor: QuantizedTensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, values, scale)
        ctx.tensor = replace(tensor, outlier_value=None, scale=torch.empty(0))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, tensor.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, scale = ctx.saved_tensors
        tensor: QuantizedTensor = replace(ctx.tensor, outlier_value=values, scale=scale)
        needs_x, needs_values, needs_scale, _ = ctx.needs_input_grad
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grad_values = grad_scale = None
        with torch.autocast(x.device.type, enabled=False):
            if needs_x:
                grad_x = grad @ tensor.dequantize(grad.dtype)
            if needs_values:
                assert tensor.outlier_ptr is not None
                assert tensor.outlier_col is not None
                grad_values = outlier_gradient(
                    rows, inputs, tensor.outlier_ptr, tensor.outlier_col, inputs.shape[1]
                ).to(values.dtype)
            if needs_scale:
                grad_scale = _scale_gradient(rows, inputs, tensor).to(scale.dtype)
        return grad_x, grad_values, grad_scale, None


def _scale_gradient(rows: torch.Tensor, inputs: torch.Tensor, tensor: QuantizedTensor) -> torch.Tensor:
    """Gradient of the step sizes, in their shape: the dense weight gradient times the code, summed per group."""
    dense = rows.float().t() @ inputs.float()
    dense.view(-1)[tensor.outlier_positions()] = 0
    steps = replace(tensor, scale=torch.ones_like(tensor.scale)).dequantize_dense()
    groups = (dense * steps).view(tensor.shape[0], tensor.scale.shape[1], -1).sum(dim=2)
    return groups if tensor.scale.shape[0] > 1 else groups.sum(dim=0, keepdim=True)
