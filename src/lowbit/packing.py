"""Dense packing of 2- to 8-bit codes into bytes.

Code ``i`` occupies bits ``[i * bits, (i + 1) * bits)`` of a little-endian bit stream, so ``n`` codes take
``ceil(n * bits / 8)`` bytes for every ``n``; the unused bits of the last byte are zero.
"""

from __future__ import annotations

import torch

_BLOCK = 8  # codes; eight codes of b bits fill exactly b bytes
# Widths that divide a byte: the word for the codes of one byte, and the (shift, mask) steps to a code per byte.
_SPREADS = {
    4: (torch.int16, [(4, 0x0F0F)]),
    2: (torch.int32, [(12, 0x000F000F), (6, 0x03030303)]),
}


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack ``codes`` (uint8, any shape, each below ``2 ** bits``) into a flat uint8 tensor."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.clone()
    if bits in _SPREADS:
        return _pack_aligned(flat, bits)
    blocks = _padded(flat, _BLOCK).view(-1, _BLOCK).long()
    words = blocks[:, 0].clone()
    for position in range(1, _BLOCK):
        words |= blocks[:, position] << (position * bits)
    shifts = torch.arange(0, 8 * bits, 8, device=codes.device)
    stream = (words[:, None] >> shifts & 255).to(torch.uint8).reshape(-1)
    return stream[: packed_size(flat.numel(), bits)].clone()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Inverse of :func:`pack`: the first ``count`` codes of a packed flat uint8 tensor, as flat uint8."""
    if bits == 8:
        return packed[:count]
    if bits in _SPREADS:
        return _unpack_aligned(packed, bits)[:count]
    blocks = _padded(packed, bits).view(-1, bits).long()
    words = blocks[:, 0].clone()
    for position in range(1, bits):
        words |= blocks[:, position] << (8 * position)
    shifts = torch.arange(0, _BLOCK * bits, bits, device=packed.device)
    return (words[:, None] >> shifts & (2**bits - 1)).to(torch.uint8).reshape(-1)[:count]


def _pack_aligned(flat: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes whose width divides a byte, without widening them."""
    per_byte = 8 // bits
    blocks = _padded(flat, per_byte).view(-1, per_byte)
    packed = blocks[:, 0].clone()
    for position in range(1, per_byte):
        packed |= blocks[:, position] << (position * bits)
    return packed


def _unpack_aligned(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """All codes of bytes whose width divides a byte: whole words at a time, far faster than columns of bytes."""
    dtype, steps = _SPREADS[bits]
    words = packed.to(dtype)
    for shift, mask in steps:
        words = (words << shift).bitwise_or_(words).bitwise_and_(mask)
    return words.view(torch.uint8)


def _padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    """``flat`` followed by zeros up to a multiple of ``multiple``."""
    missing = -flat.numel() % multiple
    return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat
