"""An int8 product over a weight that stays in few bits: unpacked into one scratch weight just before it is used."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from lowbit.kernels import onednn
from lowbit.kernels.activations import LARGEST_INPUT
from lowbit.kernels.planes import pack_planes, unpack_planes

_FULL = 8  # bits
_TINY = 2.0**-100  # a token of zeros needs some step
_scratch = threading.local()  # weights by shape; each thread has its own, so that models can run side by side


@dataclass(frozen=True)
class PackedWeight:
    """An int8 weight [out, in] as the kernel orders its bytes, compressed.

    ``planes`` int8, flat: every byte in ``bits`` bits. A byte is the element itself, or, where ``odd``, twice the
    element plus one, for levels without a zero. ``place`` int32 and ``value`` int8 [exceptions]: the bytes that do not
    fit, outliers and whatever the kernel adds to a weight. At 8 bits ``planes`` is what the kernel takes, as it is.
    """

    shape: tuple[int, int]
    bits: int
    odd: bool
    planes: torch.Tensor
    place: torch.Tensor
    value: torch.Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return self  # it never changes, and what the kernel takes cannot be copied

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        planes = torch.ops.mkldnn._nbytes(self.planes) if self.bits == _FULL else self.planes.nbytes
        return int(planes) + self.place.nbytes + self.value.nbytes


def has_scratch() -> bool:
    """Whether torch can multiply int8 by oneDNN here, and shows where a packed weight lies."""
    return bool(
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
        and hasattr(torch.ops.mkldnn, "data_ptr")
    )


def scratch_limit() -> int:
    """Largest magnitude of a weight's code that no processor instruction saturates on.

    Without VNNI two products of an 8-bit activation and a weight are added in 16 bits: 2 x 255 x 63 still fits.
    """
    return 63 if onednn.saturates() else 127


def pack_scratch(codes: torch.Tensor, bits: int, *, odd: bool = False) -> PackedWeight:
    """Pack an int8 weight [out, in], most of whose elements fit ``bits`` bits, or are ``odd`` and fit one bit more."""
    shape = (codes.shape[0], codes.shape[1])
    packed = onednn.pack(codes)
    if bits == _FULL:
        return PackedWeight(shape, bits, False, packed, torch.empty(0, dtype=torch.int32), codes.new_empty(0))
    raw = onednn.packed_bytes(packed)
    elements = raw - 1 >> 1 if odd else raw.clone()
    misfit = (elements < -(2 ** (bits - 1))) | (elements >= 2 ** (bits - 1))
    if odd:
        misfit |= raw & 1 == 0
    place = misfit.nonzero()[:, 0]
    elements[place] = 0
    return PackedWeight(shape, bits, odd, pack_planes(elements, bits), place.int(), raw[place])


def scratch_linear(
    x: torch.Tensor,
    weight: PackedWeight,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    step: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x`` float32 [tokens, in], rounded to 8 bits per token, or by ``step`` float32 [1], times the weight, whose rows
    are multiplied by ``scale`` float32 [out], plus ``bias`` [out]: float32 [tokens, out]. Reference:
    :func:`scratch_linear_reference`.
    """
    if not x.numel():
        return x.new_empty(x.shape[0], weight.shape[0])
    codes, step = token_codes(x) if step is None else static_codes(x, step)
    product = onednn.multiply(codes, _unpacked(weight), scale)
    return product.mul_(step) if bias is None else torch.addcmul(bias, product, step)


def scratch_linear_reference(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    step: torch.Tensor | None = None,
) -> torch.Tensor:
    """What :func:`scratch_linear` computes, in float64, of int8 ``codes`` [out, in]; returns float32 [tokens, out]."""
    inputs, step = token_codes(x) if step is None else static_codes(x, step)
    product = ((inputs.double() - onednn.ZERO) @ codes.double().t()) * step * scale
    return (product if bias is None else product + bias).float()


def token_codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [tokens, in] around 128 and step sizes float32 [tokens, 1] of ``x`` float32 [tokens, in].

    ``(codes - 128) * step`` is what :func:`lowbit.kernels.round_tokens` gives.
    """
    step = x.abs().amax(dim=1, keepdim=True).clamp_min_(_TINY).div_(LARGEST_INPUT)
    return _as_bytes(x / step), step


def static_codes(x: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`token_codes`, by one ``step`` float32 [1], like :func:`lowbit.kernels.round_static`.

    A token with a NaN has the step NaN.
    """
    codes = _as_bytes((x / step).clamp_(-LARGEST_INPUT, LARGEST_INPUT))
    return codes, x.amax(dim=1, keepdim=True).clamp_(step, step)


def _as_bytes(steps: torch.Tensor) -> torch.Tensor:
    """Float32 multiples of a step, within 127, as codes uint8 around 128; the argument is overwritten."""
    signed = steps.round_().to(torch.int8)  # a conversion to uint8 takes three times as long
    return signed.bitwise_xor_(-onednn.ZERO).view(torch.uint8)


def _unpacked(weight: PackedWeight) -> torch.Tensor:
    """The weight as the kernel takes it; it holds until this thread unpacks the next one of the same shape."""
    if weight.bits == _FULL:
        return weight.planes
    weights: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = _scratch.__dict__.setdefault("weights", {})
    if weight.shape not in weights:
        packed = onednn.pack(torch.zeros(weight.shape, dtype=torch.int8))
        weights[weight.shape] = packed, onednn.packed_bytes(packed)
    packed, raw = weights[weight.shape]
    unpack_planes(weight.planes, weight.bits, raw)
    if weight.odd:
        raw.mul_(2).add_(1)
    raw.scatter_(0, weight.place.long(), weight.value)
    return packed
