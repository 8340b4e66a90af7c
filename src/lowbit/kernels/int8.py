"""Linear layers in int8: inputs rounded to 8 bits per token, weights folded to one step per row.

A kernel is one entry of ``KERNELS``; each computes what the kernel ``reference`` computes, up to the order of float32
sums. All are for inference on a CPU: nothing is differentiable.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from lowbit.kernels import onednn
from lowbit.kernels.fold import Folded, Rest
from lowbit.kernels.native import WeightStruct, absence, library, supported

ACTIVATIONS = ("none", "gelu", "relu")  # by their number in int8.c
_LEVELS = 255
_PANEL, _PADDED = 16, 64  # rows of a panel, and what inputs are padded to, as int8.c says
ROWS = {"amx": 32, "vnni": 8, "avx2": 4}  # tokens that int8.c computes at a time
# The largest codes with which four, two or one sum of two products fit 16 bits: 255 * 16 * 2 * 4 < 2^15. Every kernel
# without VNNI instructions forms at least one.
_SUMMED = (16, 32, 64)
_FULL = 127


@dataclass(frozen=True)
class Int8Weight:
    """A folded weight [out, in] in the layout of one kernel.

    ``packed`` holds the codes as the kernel wants them, none above ``limit``; ``scale`` and ``bias`` float32 and
    ``sums`` int32 (of the codes of a row) are [out], padded with zeros to a multiple of 16.
    """

    kernel: str
    shape: tuple[int, int]
    limit: int
    packed: torch.Tensor
    scale: torch.Tensor
    sums: torch.Tensor
    bias: torch.Tensor
    rest: Rest
    structs: dict[str, tuple[WeightStruct, torch.Tensor]] = field(init=False, repr=False, default_factory=dict)

    def struct(self, activation: str) -> WeightStruct:
        """What the C kernels take; it points into the tensors of this weight, which must outlive it."""
        if activation not in self.structs:
            rest, rows = self.rest, self.rest.rows().to(torch.int32)
            tensors = (self.packed, self.scale, self.bias, self.sums, rest.ptr, rows, rest.col, rest.value)
            pointers = [tensor.data_ptr() for tensor in tensors]
            struct = WeightStruct(*self.shape, self.limit, *pointers, ACTIVATIONS.index(activation))
            self.structs[activation] = (struct, rows)
        return self.structs[activation][0]


@dataclass(frozen=True)
class Kernel:
    """One way to multiply.

    ``limits`` are the largest codes that a weight may be folded to, ascending; smaller ones are faster. ``pack`` lays
    codes int8 [out, in] out; ``view`` is the packed tensor as flat int8 memory, in which ``places`` finds rows and
    columns (int64) of a weight of the given shape; ``note_sums`` is called with the packed tensor, the sums of the rows
    and the shape after that. ``run`` takes ``x`` float32 [tokens, in], contiguous.
    """

    limits: tuple[int, ...]
    pack: Callable[[torch.Tensor], torch.Tensor]
    view: Callable[[torch.Tensor], torch.Tensor]
    places: Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]
    run: Callable[[torch.Tensor, Int8Weight, str], torch.Tensor]
    note_sums: Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], None] = lambda packed, sums, shape: None


def pack_weight(folded: Folded, bias: torch.Tensor | None, kernel: str) -> Int8Weight:
    """A folded weight [out, in] and its bias [out] in the layout of a kernel."""
    out_features, in_features = folded.codes.shape
    padding = (0, -out_features % _PANEL)
    bias = torch.zeros(out_features) if bias is None else bias.detach().float()
    return Int8Weight(
        kernel=kernel,
        shape=(out_features, in_features),
        limit=folded.limit,
        packed=KERNELS[kernel].pack(folded.codes),
        scale=F.pad(folded.scale, padding),
        sums=F.pad(folded.codes.sum(dim=1, dtype=torch.int32), padding),
        bias=F.pad(bias, padding),
        rest=folded.rest,
    )


def int8_linear(x: torch.Tensor, weight: Int8Weight, activation: str = "none") -> torch.Tensor:
    """``activation(x W^T + bias)`` for ``x`` float32 [tokens, in], each token rounded to 8 bits; float32 [tokens, out].

    ``activation`` is one of ``ACTIVATIONS``. A token with a NaN or infinity gives a row of NaN.
    """
    return KERNELS[weight.kernel].run(x.contiguous(), weight, activation)


def best_kernel() -> tuple[str, str]:
    """The name of the fastest kernel that this machine has, and why it is that one."""
    level = best_level()
    if level is not None and library(level) is not None:
        return level, _REASONS[level]
    if torch.backends.mkldnn.is_available() and torch.cpu._is_avx2_supported():
        return "onednn", f"there are no C kernels: {kernels_absence()}"
    return "reference", f"there are neither C kernels ({kernels_absence()}) nor those of oneDNN for x86"


def best_level() -> str | None:
    """The best instructions that this machine has and the C kernels can be compiled for; None where it has none."""
    return next((level for level in _REASONS if supported(level)), None)


def kernels_absence() -> str:
    """Why there are no C kernels for the best instructions of this machine; empty where there are."""
    return absence(best_level() or "avx2")


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row of ``x`` float32 [tokens, in] on 256 levels from its smallest to its largest value, 0 among them.

    Returns codes uint8, steps [tokens, 1] and zero points [tokens, 1], float32: ``x`` is about (codes - zero) * step.
    """
    low, high = x.amin(dim=1, keepdim=True).clamp_max(0), x.amax(dim=1, keepdim=True).clamp_min(0)
    step = (high - low) / _LEVELS
    inverse = torch.where(step > 0, 1 / step, torch.zeros_like(step))
    zero = (-low * inverse).round_()
    codes = (x * inverse).round_().add_(zero).clamp_(0, _LEVELS).to(torch.uint8)
    return codes, torch.where(step.isfinite(), step, torch.full_like(step, torch.nan)), zero


def _finish(
    x: torch.Tensor, products: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, weight: Int8Weight, activation: str
) -> torch.Tensor:
    """From the products of the codes, in units of the rows' steps, float32 [tokens, out], to the output."""
    out_features = weight.shape[0]
    scale, bias = weight.scale[:out_features], weight.bias[:out_features]
    y = torch.addcmul(bias, products.sub_(zero * (weight.sums[:out_features] * scale)), step)
    if weight.rest.value.numel():
        y.index_add_(1, weight.rest.rows(), x[:, weight.rest.col.long()] * weight.rest.value)
    if activation == "gelu":
        return F.gelu(y)
    return y.relu_() if activation == "relu" else y


def _run_reference(x: torch.Tensor, weight: Int8Weight, activation: str) -> torch.Tensor:
    codes, step, zero = round_rows(x)
    products = codes.float() @ weight.packed.float().t() * weight.scale[: weight.shape[0]]
    return _finish(x, products, step, zero, weight, activation)


def _run_onednn(x: torch.Tensor, weight: Int8Weight, activation: str) -> torch.Tensor:
    if not x.shape[0]:
        return x.new_empty(0, weight.shape[0])
    codes, step, zero = round_rows(x)
    scale = weight.scale[: weight.shape[0]]
    # One step and zero point serve a whole call, so the tokens' own come afterwards.
    products = onednn.multiply(codes, weight.packed, scale)
    return _finish(x, products, step, zero - onednn.ZERO, weight, activation)


def padded(tokens: int, in_features: int, level: str) -> int:
    """Bytes that the C kernels need for the codes of so many tokens."""
    return (tokens + ROWS[level]) * (in_features + -in_features % _PADDED)


def _run_native(level: str, x: torch.Tensor, weight: Int8Weight, activation: str) -> torch.Tensor:
    kernels = library(level)
    assert kernels is not None
    tokens, (out_features, in_features) = x.shape[0], weight.shape
    out = torch.empty(tokens, out_features)
    codes = torch.empty(padded(tokens, in_features, level), dtype=torch.uint8)
    steps, zeros = torch.empty(2, tokens).unbind()
    kernels.lowbit_linear(
        ctypes.addressof(weight.struct(activation)),
        x.data_ptr(),
        tokens,
        codes.data_ptr(),
        steps.data_ptr(),
        zeros.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _pack_native(codes: torch.Tensor) -> torch.Tensor:
    """[panels, groups of inputs, 16 rows, 4 inputs], as int8.c says."""
    rows, columns = codes.shape
    padded = F.pad(codes, (0, -columns % _PADDED, 0, -rows % _PANEL))
    return padded.view(-1, _PANEL, padded.shape[1] // 4, 4).transpose(1, 2).contiguous()


def _places_native(rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    groups = (shape[1] + -shape[1] % _PADDED) // 4
    return ((rows // _PANEL * groups + columns // 4) * _PANEL + rows % _PANEL) * 4 + columns % 4


def _places_onednn(rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Read off how oneDNN lays out the digits of the flat positions, as the layout is its own affair."""
    size = shape[0] * shape[1]
    flat = torch.arange(1, size + 1).view(shape)  # what is 0 then is padding
    found: torch.Tensor | int = 0
    for shift in range(0, (size + 1).bit_length(), 7):
        digits = onednn.pack((flat >> shift & 127).to(torch.int8))
        found = found + (onednn.packed_bytes(digits)[: onednn.sums_start(shape)].long() << shift)
    assert isinstance(found, torch.Tensor)
    places = torch.empty(size + 1, dtype=torch.int64)
    places[found] = torch.arange(found.numel())
    return places[rows * shape[1] + columns + 1]


def _native(level: str) -> Kernel:
    limits = _SUMMED if level == "avx2" else (_FULL,)
    return Kernel(limits, _pack_native, lambda packed: packed.view(-1), _places_native, partial(_run_native, level))


_REASONS = {
    "amx": "the processor multiplies tiles of int8",
    "vnni": "the processor adds four products at a time",
    "avx2": "without VNNI instructions the C kernels need fewer multiplications than oneDNN",
}
KERNELS = {
    **{level: _native(level) for level in _REASONS},
    "onednn": Kernel(
        (max(_SUMMED) if onednn.saturates() else _FULL,),
        onednn.pack,
        onednn.packed_bytes,
        _places_onednn,
        _run_onednn,
        onednn.put_sums,
    ),
    "reference": Kernel(
        (_FULL,),
        lambda codes: codes.contiguous(),
        lambda packed: packed.view(-1),
        lambda rows, columns, shape: rows * shape[1] + columns,
        _run_reference,
    ),
}
