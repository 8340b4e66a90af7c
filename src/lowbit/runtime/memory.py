"""The layout for little memory: weights stay in the bits that they are stored in, and are unpacked as they are used."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.errors import UnsupportedModelError
from lowbit.kernels import (
    PackedWeight,
    block_linear,
    has_scratch,
    pack_scratch,
    round_inputs,
    round_static,
    row_blocks,
    scratch_limit,
    scratch_linear,
)
from lowbit.nn import QuantLinear, QuantModule, TiedQuantLinear
from lowbit.qtensor import QuantizedTensor
from lowbit.runtime.latency import refuse_saving
from lowbit.runtime.report import Choice, RuntimeReport
from lowbit.scheme import Scheme

_NARROW = 4  # bits; wider codes are held in 8
_APART = 0.05  # a row that int8 changes by more, relative to its norm, is kept in float
_MOST_APART = 0.02  # of the rows; with more of them the whole weight is decoded in blocks instead


@torch.no_grad()
def prepare_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Turn the quantized linears of a loaded model into the layout for little memory, in place; returns the model.

    A linear with uniform symmetric levels and one step size per output (or for all) becomes an int8 product: its inputs
    are rounded to 8 bits per token, or by the stored step of static activations; weights of up to 4 bits are unpacked
    into a scratch weight that all linears of the same shape share, wider ones are held in 8. Any other one, and a
    projection that shares the word embedding, is decoded to float in blocks of rows. What is not quantized stays as it
    is. Raises :class:`UnsupportedModelError` for a model without quantized modules, or one that is not on the CPU.
    """
    if not any(isinstance(module, QuantModule) for module in model.modules()):
        raise UnsupportedModelError("the model has no quantized modules; make a backbone with `lowbit quantize` first")
    if model.device.type != "cpu":
        raise UnsupportedModelError(f"this layout runs on the CPU, the model is on {model.device}; move it there first")
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(path, _int8(module) or BlockLinear(module))
        elif isinstance(module, TiedQuantLinear):
            model.set_submodule(path, BlockLinear(module))
    model.requires_grad_(False).eval()
    model.lowbit_runtime = _report(model)
    model.save_pretrained = refuse_saving
    return model


def _report(model: PreTrainedModel) -> RuntimeReport:
    kinds = [type(module) for module in model.modules()]
    known = {
        ScratchLinear: ("int8, unpacked into a scratch weight", "symmetric uniform levels"),
        BlockLinear: ("float, decoded in blocks of rows", "other levels, or shared with the embedding"),
    }
    choices = (Choice("linear", kinds.count(kind), *what) for kind, what in known.items() if kind in kinds)
    return RuntimeReport("torch", "memory", tuple(choices))


class _Linear(nn.Module):
    """What both layouts have in common."""

    in_features: int
    out_features: int

    @property
    def weight(self) -> torch.Tensor:
        """A float32 tensor [out, in] without data, for code that asks for its dtype, as T5's does at every call."""
        return torch.empty(self.out_features, self.in_features, device="meta")


class ScratchLinear(_Linear):
    """``y = x W^T + b`` by an int8 product; rows that int8 does not hold well are computed in float.

    ``scale`` float32 [out]; ``apart`` int64 [rows] and ``apart_weight`` float32 [rows, in]; ``input_scale`` float32
    [1], the static step of the inputs, or None for a step per token.
    """

    def __init__(
        self,
        weight: PackedWeight,
        scale: torch.Tensor,
        bias: nn.Parameter | None,
        apart: torch.Tensor,
        apart_weight: torch.Tensor,
        input_scale: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.packed, self.scale, self.bias = weight, scale, bias
        self.apart, self.apart_weight, self.input_scale = apart, apart_weight, input_scale
        self.out_features, self.in_features = weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] to [..., out], in its dtype."""
        rows = x.reshape(-1, self.in_features).float()
        bias = None if self.bias is None else self.bias.float()
        output = scratch_linear(rows, self.packed, self.scale, bias, self.input_scale)
        if self.apart.numel():
            if self.input_scale is not None:
                rows = round_static(rows, self.input_scale)
            output[:, self.apart] = nn.functional.linear(
                rows, self.apart_weight, None if bias is None else bias[self.apart]
            )
        return output.view(*x.shape[:-1], self.out_features).to(x.dtype)


class BlockLinear(_Linear):
    """``y = x W^T + b`` in float, over a weight that is decoded some rows at a time."""

    def __init__(self, module: QuantLinear | TiedQuantLinear) -> None:
        super().__init__()
        self._payload = [module.source if isinstance(module, TiedQuantLinear) else module]  # kept by the table too
        self.bias = module.bias
        self.activations = module.scheme.activations if isinstance(module, QuantLinear) else "float"
        self.input_scale = module.input_scale if isinstance(module, QuantLinear) else None
        self.out_features, self.in_features = module.out_features, module.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] to [..., out], in its dtype."""
        rows = x.reshape(-1, self.in_features).float()
        rows = round_inputs(rows, self.activations, self.input_scale)
        output = block_linear(rows, self._payload[0].tensor, None if self.bias is None else self.bias.float())
        return output.view(*x.shape[:-1], self.out_features).to(x.dtype)


def _int8(module: QuantLinear) -> ScratchLinear | None:
    """The module as an int8 product; None where its codes are not uniform, or int8 does not hold them well."""
    scheme, tensor = module.scheme, module.tensor
    if not (has_scratch() and scheme.symmetric and scheme.codebook_shared is None and scheme.granularity != "group"):
        return None
    parts = [_int8_rows(block) for _, block in row_blocks(tensor)]
    codes, scale, error = (torch.cat(part) for part in zip(*parts, strict=True))
    apart = (error > _APART).nonzero()[:, 0]
    if len(apart) > _MOST_APART * len(error):
        return None
    if len(apart):
        codes[apart] = 0
    packed = pack_scratch(codes, scheme.bits if scheme.bits <= _NARROW else 8, odd=_is_odd(scheme))
    return ScratchLinear(packed, scale, module.bias, apart, tensor.dequantize()[apart], module.input_scale)


def _int8_rows(tensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes int8 [out, in], step sizes [out] and relative errors [out] of a weight.

    Up to 4 bits the step sizes are its own (half of them for ``midrise``), so only outliers change. Wider codes need a
    step by which the largest weight of the row fits.
    """
    dense, limit = tensor.dequantize(), scratch_limit()
    if tensor.scheme.bits <= _NARROW:
        step = (tensor.scale / (2 if _is_odd(tensor.scheme) else 1)).expand(dense.shape[0], 1)
    else:
        step = dense.abs().amax(dim=1, keepdim=True) / limit
    step = torch.where(step > 0, step, torch.ones_like(step))
    codes = (dense / step).round_().clamp_(-limit, limit)
    norm = torch.linalg.vector_norm(dense, dim=1)
    error = torch.linalg.vector_norm(codes * step - dense, dim=1) / torch.where(norm > 0, norm, torch.ones_like(norm))
    return codes.to(torch.int8), step[:, 0], error


def _is_odd(scheme: Scheme) -> bool:
    """Whether the levels of narrow codes are odd multiples of half a step."""
    return scheme.bits <= _NARROW and scheme.levels == "midrise"
