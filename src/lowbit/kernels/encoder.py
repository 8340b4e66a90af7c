"""A whole layer of a post-norm encoder in int8: one call for what its modules would do in a dozen."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from lowbit.kernels.int8 import ROWS, Int8Weight, int8_linear, padded
from lowbit.kernels.native import LayerStruct, RoomStruct, library

_TOKENS = 1024  # of one pass: what lies between the parts of a layer then stays in the caches
_CHUNK = 128  # tokens that a thread takes through all parts at a time, as int8.c says
_ALIGNED = 64
_HEAD_WIDTHS = 32  # the C attention takes heads whose width is a multiple of it


@dataclass(frozen=True)
class Norm:
    """A layer normalisation: ``weight`` and ``bias`` float32 [hidden]."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float


@dataclass(frozen=True)
class EncoderLayer:
    """The parts of ``x = norm1(x + attention(x)); norm2(x + outer(activation(inner(x))))``.

    ``attended`` is the output projection of the attention. All weights are in the layout of one kernel.
    """

    query: Int8Weight
    key: Int8Weight
    value: Int8Weight
    attended: Int8Weight
    inner: Int8Weight
    outer: Int8Weight
    norm1: Norm
    norm2: Norm
    heads: int
    scaling: float
    activation: str

    @cached_property
    def struct(self) -> LayerStruct:
        """What the C kernels take; it points into tensors, which must outlive it."""
        plain, norms = (self.query, self.key, self.value, self.attended), (self.norm1, self.norm2)
        return LayerStruct(
            *(weight.struct("none") for weight in plain),
            self.inner.struct(self.activation),
            self.outer.struct("none"),
            *(tensor.data_ptr() for norm in norms for tensor in (norm.weight, norm.bias)),
            *(norm.epsilon for norm in norms),
            self.scaling,
            self.heads,
        )


def encoder_layer(x: torch.Tensor, layer: EncoderLayer, mask: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` float32 [batch, length, hidden] to the same shape; ``mask`` bool [batch, 1, length or 1, length] is True
    where a query may look at a key.

    The C kernels take sequences a few at a time, and keep what lies between the parts in bfloat16 where they are for
    AVX512. Raises ``MemoryError`` where the attention finds no memory.
    """
    level = layer.query.kernel
    if level not in ROWS:
        return encoder_layer_reference(x, layer, mask)
    batch, length, _ = x.shape
    x, out = x.contiguous(), torch.empty(x.shape)
    if mask is not None:
        mask = mask.expand(batch, 1, length, length)
        mask = mask if mask.stride(3) == 1 else mask.contiguous()
    rows = max(1, _TOKENS // max(1, length))
    for first in range(0, batch if length else 0, rows):
        last = min(first + rows, batch)
        _run(layer, x[first:last], None if mask is None else mask[first:last], out[first:last])
    return out


def encoder_layer_reference(x: torch.Tensor, layer: EncoderLayer, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What :func:`encoder_layer` computes, part by part."""
    batch, length, hidden = x.shape
    rows = x.reshape(-1, hidden)
    q, k, v = (int8_linear(rows, weight) for weight in (layer.query, layer.key, layer.value))
    attended = int8_linear(_attention(q, k, v, layer, (batch, length), mask), layer.attended)
    rows = _norm(rows + attended, layer.norm1)
    fed = int8_linear(int8_linear(rows, layer.inner, layer.activation), layer.outer)
    return _norm(rows + fed, layer.norm2).view(x.shape)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: EncoderLayer,
    shape: tuple[int, int],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Torch's attention over [tokens, heads * width], in that layout."""
    q, k, v = (part.view(*shape, layer.heads, -1).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=layer.scaling)
    return out.transpose(1, 2).reshape(shape[0] * shape[1], -1)


def _norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.epsilon)


@dataclass(frozen=True)
class _Shape:
    """What the memory of a pass depends on: ``half`` where the attention is that of the C kernels."""

    level: str
    tokens: int
    threads: int
    width: int
    hidden: int
    inner: int
    half: bool


class _Room(threading.local):
    """Memory for what lies between the parts of a layer: that of the last pass is kept for the next one."""

    shape: _Shape | None = None
    struct: RoomStruct
    buffer: torch.Tensor
    parts: tuple[torch.Tensor, ...]

    def of(self, shape: _Shape) -> RoomStruct:
        """The struct for passes of a shape; ``parts`` are query, key, value and attended, float32, unless ``half``."""
        if shape != self.shape:
            rows = max(shape.tokens, _CHUNK * shape.threads) + ROWS[shape.level]
            most = max(shape.hidden, shape.width, shape.inner)
            sizes = [rows * shape.width * (2 if shape.half else 4)] * 4
            sizes += [
                rows * shape.hidden * 4,
                rows * shape.inner * 4,
                padded(rows, most, shape.level),
                rows * 4,
                rows * 4,
            ]
            starts = [0]
            for size in sizes:
                starts.append(starts[-1] + size + -size % _ALIGNED)
            self.buffer = torch.empty(starts[-1], dtype=torch.uint8)
            self.struct = RoomStruct(*(self.buffer.data_ptr() + start for start in starts[:-1]), shape.half)
            cells = self.buffer.view(torch.float32)
            self.parts = tuple(cells[start // 4 :][: shape.tokens * shape.width] for start in starts[:4])
            self.shape = shape
        return self.struct


_room = _Room()


def _run(layer: EncoderLayer, x: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor) -> None:
    """The layer for a few sequences."""
    level, (batch, length, hidden) = layer.query.kernel, x.shape
    kernels, threads, tokens, width = library(level), torch.get_num_threads(), batch * length, layer.query.shape[0]
    assert kernels is not None
    half = level == "amx" and width // layer.heads % _HEAD_WIDTHS == 0
    room = _room.of(_Shape(level, tokens, threads, width, hidden, layer.inner.shape[0], half))
    pointers = ctypes.addressof(layer.struct), ctypes.addressof(room), x.data_ptr()
    if half:
        strides = (0, 0) if mask is None else (mask.stride(0), mask.stride(2))
        address = None if mask is None else mask.data_ptr()
        if kernels.lowbit_layer(*pointers, batch, length, address, *strides, out.data_ptr(), threads):
            raise MemoryError(f"no memory for the attention over {length} tokens; give fewer at a time")
        return
    kernels.lowbit_project(*pointers, tokens, threads)
    q, k, v, attended = (part.view(tokens, width) for part in _room.parts)
    attended.copy_(_attention(q, k, v, layer, (batch, length), mask))
    kernels.lowbit_feed(*pointers, tokens, out.data_ptr(), threads)
