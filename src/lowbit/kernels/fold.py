"""Folding: a quantized weight of any scheme, outliers in place, as int8 codes with one float32 step per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lowbit.qtensor import QuantizedTensor, sparse_places
from lowbit.scheme import CODEBOOKS, Scheme

_ROOM = 1.5  # a row keeps its codes where outliers so many times larger than them have codes, too
_STRETCH = 2.5  # how far outliers may stretch the step of other rows; what lies beyond is kept apart, which costs time


@dataclass(frozen=True)
class Rest:
    """What the codes of a weight [out, in] cannot express, added to them: compressed sparse rows.

    ``ptr`` int32 [out + 1], ``col`` int32 [entries], ``value`` float32 [entries].
    """

    ptr: torch.Tensor
    col: torch.Tensor
    value: torch.Tensor

    def rows(self) -> torch.Tensor:
        """The row of each entry, int64."""
        counts = (self.ptr[1:] - self.ptr[:-1]).long()
        return torch.repeat_interleave(torch.arange(counts.numel()), counts, output_size=self.col.numel())

    def updated(self, flat: torch.Tensor, values: torch.Tensor, columns: int) -> Rest:
        """The same with ``values`` at flat positions in the place of what is there; a value of 0 is no entry."""
        own = self.rows() * columns + self.col
        kept = ~torch.isin(own, flat)
        flat, values = torch.cat([own[kept], flat[values != 0]]), torch.cat([self.value[kept], values[values != 0]])
        order = flat.argsort()
        return entries(flat[order], values[order], (self.ptr.numel() - 1, columns))


def entries(flat: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> Rest:
    """Float32 values at ascending flat positions of a weight [out, in]."""
    ptr, col = sparse_places(flat, shape)
    return Rest(ptr, col.to(torch.int32), values)


@dataclass(frozen=True)
class Folded:
    """A weight [out, in] as ``codes`` int8 [out, in] times ``scale`` float32 [out], plus the few entries of ``rest``.

    No code is above ``limit`` in magnitude. ``error`` is what folding added: ``||folded - W|| / ||W||``. ``exact_rows``
    counts the rows whose decoded codes are kept exactly, so that only outliers are rounded.
    """

    codes: torch.Tensor
    limit: int
    scale: torch.Tensor
    rest: Rest
    error: float
    exact_rows: int

    def weight(self) -> torch.Tensor:
        """The float32 weight [out, in] that this stands for."""
        weight = self.codes.float() * self.scale[:, None]
        return weight.index_put_((self.rest.rows(), self.rest.col.long()), self.rest.value, accumulate=True)


def row_step(tensor: QuantizedTensor) -> torch.Tensor | None:
    """The step float32 [out] whose multiples all decoded codes of a row are; None for groups and codebooks."""
    if tensor.scheme.granularity == "group" or tensor.scheme.levels in CODEBOOKS:
        return None
    step = tensor.scale.float().view(-1).expand(tensor.shape[0])
    return step / 2 if tensor.scheme.levels == "midrise" else step


def keeps_codes(scheme: Scheme, limit: int) -> bool:
    """Whether folding keeps the codes of any weight of this scheme exactly, so that its step sizes can still change."""
    if scheme.granularity == "group" or scheme.levels in CODEBOOKS or not scheme.symmetric:
        return False
    code = 2**scheme.bits - 1 if scheme.levels == "midrise" else 2 ** (scheme.bits - 1)
    return _ROOM * code < limit + 0.5


def fold(tensor: QuantizedTensor, limits: tuple[int, ...]) -> Folded:
    """Fold a tensor into codes whose magnitude is at most one of ascending ``limits``.

    It is the first one at least twice the largest decoded code, so that outliers have room, else the last. A row on a
    grid of step s gets the step s / k with k = floor(limit s / max|w|), at least 1: its codes stay exact, and outliers
    are rounded. Other rows, and those whose codes leave no room for outliers beyond them, get their largest weight over
    the limit, outliers counted up to two and a half times the largest decoded code. What lies beyond the limit is
    clipped, and what is missing goes to ``rest``, which costs time.
    """
    dense, step = tensor.dequantize_dense(), row_step(tensor)
    weight = dense if tensor.outlier_value is None else tensor.dequantize()
    largest, largest_dense = _largest(weight), _largest(dense)
    limit = _choose_limit(largest_dense, step, limits)
    scale = torch.minimum(largest, _STRETCH * largest_dense) / limit
    exact = torch.zeros_like(scale, dtype=torch.bool)
    if step is not None:
        room = torch.minimum(largest, _ROOM * largest_dense)
        exact = (room < (limit + 0.5) * step) & (step > 0)
        parts = (limit * step / _nonzero(largest)).floor().clamp(1, limit)
        scale = torch.where(exact, step / parts, scale)
    scale = _nonzero(scale)
    codes, missing = fold_values(weight, scale[:, None], limit)
    places = missing.view(-1).nonzero().view(-1)
    rest = entries(places, missing.view(-1)[places], tensor.shape)
    whole = float(weight.norm())
    error = float(weight.sub_(codes * scale[:, None]).sub_(missing).norm()) / whole if whole else 0.0
    return Folded(codes, limit, scale, rest, error, int(exact.sum()))


def _choose_limit(largest: torch.Tensor, step: torch.Tensor | None, limits: tuple[int, ...]) -> int:
    if step is None:
        return limits[-1]
    code = float((largest / _nonzero(step)).max())
    return next((limit for limit in limits if 2 * code < limit + 0.5), limits[-1])


def _largest(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each row."""
    low, high = torch.aminmax(weight, dim=1)
    return torch.maximum(-low, high)


def fold_values(values: torch.Tensor, scale: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values as int8 codes in units of ``scale``, and what a clipped one misses (0 where nothing is), float32."""
    steps = (values / scale).round_()
    codes = steps.clamp(-limit, limit)
    clipped = (steps - codes).abs_().gt_(0)
    return codes.to(torch.int8), torch.where(clipped.bool(), values - codes * scale, 0.0)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Steps that can be divided by; a row of zeros has the step 1."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
