"""A whole layer of a post-norm encoder in int8: one call for what its modules would do in a dozen."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F

from lowbit.kernels.int8 import ROWS, Int8Weight, int8_linear, padded
from lowbit.kernels.native import LayerStruct, RoomStruct, library

_TOKENS = 1024  # of one pass: what lies between the parts of a layer then stays in the caches
_CHUNK = 128  # tokens that a thread takes through all parts at a time, as int8.c says
_ALIGNED = 64
_FULL = 0.9  # of the tokens of a batch: gathering the others costs more than it saves beyond that
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

    Where the mask hides a tenth of the keys or more from all queries of a sequence, these tokens are left out of the
    computation and come out as zeros. The C kernels take some sequences at a time, and keep what lies between the parts
    in bfloat16 where they are for AVX512. Raises ``MemoryError`` where the attention finds no memory.
    """
    batch, length, hidden = x.shape
    if not x.numel():
        return torch.empty(x.shape)
    rows = x.reshape(-1, hidden)
    kept = None if mask is None else _kept.of(mask, (batch, length))
    if kept is None:
        return _sequences(rows, layer, [length] * batch, mask).view(x.shape)
    found = _sequences(rows.index_select(0, kept.rows), layer, kept.lengths, None)
    return torch.zeros(rows.shape).index_copy_(0, kept.rows, found).view(x.shape)


def encoder_layer_reference(x: torch.Tensor, layer: EncoderLayer, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What :func:`encoder_layer` computes, part by part, padding included."""
    batch, length, hidden = x.shape
    return _parts(x.reshape(-1, hidden), layer, [length] * batch, mask).view(x.shape)


@dataclass(frozen=True)
class _Kept:
    """The tokens of a padded batch that are none: places int64 among all, and how many each sequence has."""

    rows: torch.Tensor
    lengths: list[int]


class _Masks(threading.local):
    """What was found of the last mask, which all layers of a model get."""

    mask: torch.Tensor | None = None
    version = 0
    found: _Kept | None = None

    def of(self, mask: torch.Tensor, shape: tuple[int, int]) -> _Kept | None:
        """The tokens to compute; None where the mask hides few of them, or something else from each query."""
        if mask.is_inference():  # nothing tells whether it was written to
            return _find_kept(mask, shape)
        if mask is not self.mask or mask._version != self.version:
            self.mask, self.version, self.found = mask, mask._version, _find_kept(mask, shape)
        return self.found


def _find_kept(mask: torch.Tensor, shape: tuple[int, int]) -> _Kept | None:
    keys = mask[:, 0, 0].expand(shape)
    lengths = keys.sum(dim=1)
    if int(lengths.sum()) > _FULL * keys.numel() or not lengths.all() or (mask != mask[:, :, :1]).any():
        return None
    return _Kept(keys.reshape(-1).nonzero().view(-1), lengths.tolist())


_kept = _Masks()


def _sequences(rows: torch.Tensor, layer: EncoderLayer, lengths: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """The layer over sequences that follow each other in ``rows`` [tokens, hidden], equally long if there is a mask."""
    if layer.query.kernel not in ROWS:
        return _parts(rows, layer, lengths, mask)
    rows, out = rows.contiguous(), torch.empty(rows.shape)
    if mask is not None:
        mask = mask.expand(len(lengths), 1, lengths[0], lengths[0])
        mask = mask if mask.stride(3) == 1 else mask.contiguous()
    starts = [0, *accumulate(lengths)]
    for first, last in _passes(lengths):
        own = slice(starts[first], starts[last])
        _run(layer, rows[own], lengths[first:last], None if mask is None else mask[first:last], out[own])
    return out


def _passes(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """First and last sequence of each pass: as many as have some tokens together, and at least one."""
    first, tokens = 0, 0
    for place, length in enumerate(lengths):
        if place > first and tokens + length > _TOKENS:
            yield first, place
            first, tokens = place, 0
        tokens += length
    yield first, len(lengths)


def _parts(rows: torch.Tensor, layer: EncoderLayer, lengths: list[int], mask: torch.Tensor | None) -> torch.Tensor:
    """The layer, part by part."""
    q, k, v = (int8_linear(rows, weight) for weight in (layer.query, layer.key, layer.value))
    attended = int8_linear(_attention(q, k, v, layer, lengths, mask), layer.attended)
    rows = _norm(rows + attended, layer.norm1)
    fed = int8_linear(int8_linear(rows, layer.inner, layer.activation), layer.outer)
    return _norm(rows + fed, layer.norm2)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: EncoderLayer,
    lengths: list[int],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Torch's attention over [tokens, heads * width], in that layout."""
    if len(set(lengths)) > 1:
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([_attention(*own, layer, [own[0].shape[0]], None) for own in parts])
    shape = (len(lengths), -1, layer.heads, q.shape[1] // layer.heads)
    q, k, v = (part.view(shape).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=layer.scaling)
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def _norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.epsilon)


@dataclass(frozen=True)
class _Shape:
    """What the memory of a pass depends on: ``half`` where the attention is that of the C kernels."""

    level: str
    threads: int
    width: int
    hidden: int
    inner: int
    half: bool


class _Room(threading.local):
    """Memory for what lies between the parts of a layer: that of the last pass is kept for the next one."""

    shape: _Shape | None = None
    tokens = 0
    struct: RoomStruct
    buffer: torch.Tensor
    starts: list[int]

    def of(self, shape: _Shape, tokens: int) -> RoomStruct:
        """The struct for passes of a shape and so many tokens."""
        if shape != self.shape or tokens > self.tokens:
            rows = max(tokens, _CHUNK * shape.threads) + ROWS[shape.level]
            most = max(shape.hidden, shape.width, shape.inner)
            sizes = [rows * shape.width * (2 if shape.half else 4)] * 4
            sizes += [rows * shape.hidden * 4, rows * shape.inner * 4, padded(rows, most, shape.level)]
            sizes += [rows * 4] * 2
            self.starts = [0]
            for size in sizes:
                self.starts.append(self.starts[-1] + size + -size % _ALIGNED)
            self.buffer = torch.empty(self.starts[-1], dtype=torch.uint8)
            self.struct = RoomStruct(*(self.buffer.data_ptr() + start for start in self.starts[:-1]), shape.half)
            self.shape, self.tokens = shape, tokens
        return self.struct

    def part(self, number: int, tokens: int, width: int) -> torch.Tensor:
        """Query, key, value or attended, float32 [tokens, width], unless the shape is ``half``."""
        start = self.starts[number] // 4
        return self.buffer.view(torch.float32)[start : start + tokens * width].view(tokens, width)


_room = _Room()


def _run(
    layer: EncoderLayer, x: torch.Tensor, lengths: list[int], mask: torch.Tensor | None, out: torch.Tensor
) -> None:
    """One pass: ``x`` and ``out`` [tokens, hidden]."""
    level, (tokens, hidden) = layer.query.kernel, x.shape
    kernels, threads, width = library(level), torch.get_num_threads(), layer.query.shape[0]
    assert kernels is not None
    half = level == "amx" and width // layer.heads % _HEAD_WIDTHS == 0
    room = _room.of(_Shape(level, threads, width, hidden, layer.inner.shape[0], half), tokens)
    pointers = ctypes.addressof(layer.struct), ctypes.addressof(room), x.data_ptr()
    if half:
        starts = (ctypes.c_long * (len(lengths) + 1))(0, *accumulate(lengths))
        strides = (0, 0) if mask is None else (mask.stride(0), mask.stride(2))
        address = None if mask is None else mask.data_ptr()
        if kernels.lowbit_layer(*pointers, starts, len(lengths), address, *strides, out.data_ptr(), threads):
            raise MemoryError(f"no memory for the attention over {max(lengths)} tokens; give fewer at a time")
        return
    kernels.lowbit_project(*pointers, tokens, threads)
    q, k, v, attended = (_room.part(number, tokens, width) for number in range(4))
    attended.copy_(_attention(q, k, v, layer, lengths, mask))
    kernels.lowbit_feed(*pointers, tokens, out.data_ptr(), threads)
