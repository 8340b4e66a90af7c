"""A float product over a weight that stays in few bits, decoded some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from lowbit.qtensor import QuantizedTensor

_BLOCK = 1 << 19  # weights decoded at once: 2 MB, which stay in the processor's cache
_ZERO = 128  # the code that stands for 0 at 8 bits
_UNIT = 8  # rows; eight rows of codes end on a whole byte in every width


def block_linear(x: torch.Tensor, tensor: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` float32 [tokens, in] times the transposed weight [out, in] plus ``bias``: float32 [tokens, out].

    Reference: ``F.linear(x, tensor.dequantize(), bias)``; there is never more than a block of rows in float.
    """
    output = x.new_empty(x.shape[0], tensor.shape[0])
    plain = _is_plain_byte(tensor)
    for first, block in row_blocks(tensor):
        decoded = (block.codes() - _ZERO).view(torch.int8).float() if plain else block.dequantize()
        torch.mm(x, decoded.t(), out=output[:, first : first + block.shape[0]])
    if plain:
        output.mul_(tensor.scale.view(-1))
    return output if bias is None else output.add_(bias)


def _is_plain_byte(tensor: QuantizedTensor) -> bool:
    """Whether the codes are bytes around 128 that one factor per output makes the weight, as of word embeddings."""
    scheme = tensor.scheme
    uniform = scheme.symmetric and scheme.codebook_shared is None and scheme.offset == _ZERO
    return uniform and scheme.granularity != "group" and tensor.outlier_value is None


def row_blocks(tensor: QuantizedTensor) -> Iterator[tuple[int, QuantizedTensor]]:
    """The weight in blocks of rows, each with the number of its first row; they share its memory."""
    out_features, in_features = tensor.shape
    rows = max(_BLOCK // in_features // _UNIT, 1) * _UNIT
    for first in range(0, out_features, rows):
        yield first, _rows(tensor, first, min(first + rows, out_features))


def _rows(tensor: QuantizedTensor, first: int, last: int) -> QuantizedTensor:
    """Rows ``first`` (a multiple of eight) to ``last`` of a weight."""
    (out_features, in_features), bits = tensor.shape, tensor.scheme.bits

    def part(values: torch.Tensor) -> torch.Tensor:
        if values.shape[0] == 1:  # one for the whole weight
            return values
        each = values.shape[0] // out_features
        return values[first * each : last * each]

    found = replace(
        tensor,
        shape=(last - first, in_features),
        weight=tensor.weight[first * in_features * bits // 8 : -(-last * in_features * bits // 8)],
        scale=part(tensor.scale),
        zero_point=None if tensor.zero_point is None else part(tensor.zero_point),
        codebook=None if tensor.codebook is None else part(tensor.codebook),
    )
    if tensor.outlier_ptr is None or tensor.outlier_col is None or tensor.outlier_value is None:
        return found
    start, end = (int(tensor.outlier_ptr[row]) for row in (first, last))
    return replace(
        found,
        outlier_ptr=tensor.outlier_ptr[first : last + 1] - start,
        outlier_col=tensor.outlier_col[start:end],
        outlier_value=tensor.outlier_value[start:end],
    )
