"""Signed integers of 2 to 8 bits in planes: an order of the bits that whole tensors of bytes unpack from.

Dense packing (``lowbit.packing``) puts neighbours into one byte, which has to be spread out again. Here byte ``j`` of a
plane holds elements ``j``, ``j + size``, ``j + 2 size``..., so that a few shifts of all bytes at once give runs of
elements. A width that is no power of two is split into planes whose widths are, the highest bits first.
"""

from __future__ import annotations

import torch

_UNIT = 8  # elements; eight of b bits fill exactly b bytes


def pack_planes(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 ``values`` (flat, each within ``bits`` bits, two's complement) into flat int8 planes."""
    padded = torch.cat([values, values.new_zeros(-values.numel() % _UNIT)])
    planes = []
    below = bits
    for width in _widths(bits):
        below -= width
        parts = (padded >> below & _mask(width)).view(8 // width, -1)
        plane = parts[0].clone()
        for place in range(1, 8 // width):
            plane |= parts[place] << place * width
        planes.append(plane)
    return torch.cat(planes)


def unpack_planes(packed: torch.Tensor, bits: int, out: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`pack_planes` into ``out``, int8 of the values' flat shape; returns it."""
    if out.numel() % _UNIT:
        padded = out.new_empty(packed.numel() // bits * _UNIT)
        return out.copy_(unpack_planes(packed, bits, padded)[: out.numel()])
    start = 0
    for number, width in enumerate(_widths(bits)):
        plane = packed[start : start + out.numel() * width // 8]
        start += plane.numel()
        for place, part in enumerate(out.view(8 // width, -1)):
            if number:
                part.bitwise_left_shift_(width).bitwise_or_(plane >> place * width & _mask(width))
            else:  # the highest bits carry the sign
                unused = 8 - width * (place + 1)
                source = torch.bitwise_left_shift(plane, unused, out=part) if unused else plane
                torch.bitwise_right_shift(source, 8 - width, out=part)
    return out


def _widths(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]


def _mask(width: int) -> int:
    return -1 if width == 8 else 2**width - 1
