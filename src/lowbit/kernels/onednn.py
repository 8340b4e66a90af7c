"""oneDNN's int8 product as torch offers it, and the memory of a weight that is packed for it."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

ZERO = 128  # the code of an input that stands for 0; with any other one the product falls into a slow path


def saturates() -> bool:
    """Whether this machine's integer products may overflow.

    Without VNNI instructions they add the products of two neighbours, an input of 0 to 255 and a code each, in 16 bits.
    """
    return not torch.cpu._is_vnni_supported()


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes int8 [out, in] in oneDNN's own order, an opaque tensor."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    return packed


def packed_bytes(packed: torch.Tensor) -> torch.Tensor:
    """The memory of a packed weight as flat int8; it must not outlive ``packed``."""
    size, address = torch.ops.mkldnn._nbytes(packed), torch.ops.mkldnn.data_ptr(packed)
    return torch.frombuffer((ctypes.c_int8 * size).from_address(address), dtype=torch.int8)


@cache
def sums_start(shape: tuple[int, int]) -> int | None:
    """Where a packed weight [out, in] keeps the negated sums of its rows, int32, in bytes; None where it has none.

    Processors with VNNI have them, so that inputs with a zero point cost nothing.
    """
    ones = packed_bytes(pack(torch.ones(shape, dtype=torch.int8)))
    found = (ones[: ones.numel() // 4 * 4].view(torch.int32) == -shape[1]).nonzero()
    return 4 * int(found[0]) if found.numel() else None


def put_sums(packed: torch.Tensor, sums: torch.Tensor, shape: tuple[int, int]) -> None:
    """Tell a packed weight [out, in], whose codes were written to, what ``sums`` int32 [out] its rows have now."""
    start = sums_start(shape)
    if start is not None:
        packed_bytes(packed)[start : start + 4 * shape[0]].view(torch.int32).copy_(-sums[: shape[0]])


def multiply(codes: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``codes`` uint8 [tokens, in] less 128, times a packed weight with row steps ``scale`` float32 [out].

    Returns float32 [tokens, out].
    """
    no_zeros = torch.zeros_like(scale, dtype=torch.int32)
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, ZERO, packed, scale, no_zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product
