"""The grid: weight = (code - offset) * scale, or codebook[code] * scale, code in 0 .. 2^bits - 1.

Weights come as [groups, rows, columns] blocks that share one step size per group: a channel is
[out, 1, in], a whole tensor [1, out, in], groups [out * in / size, 1, size]. Step sizes are [groups].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lowbit.errors import WeightError
from lowbit.scheme import Scheme

_HALF_MAX = 65504.0
_HALF_TINY = 2.0**-24
_SERIAL = 1 << 14  # elements; sums longer than this would be split by the number of threads


@dataclass(frozen=True)
class Fit:
    """What a strategy finds for the blocks [groups, rows, columns] of one weight.

    ``scale`` float32 [groups]; ``zero_point`` uint8 [groups] for asymmetric schemes; ``codebook`` float32
    [codebooks, 2^bits] ascending, in units of ``scale``, for the levels ``codebook`` (one per group) and
    ``shared-codebook`` (one). ``codes`` uint8 in the blocks' shape, where they are not simply the nearest ones;
    ``shift`` float32 in the blocks' shape, what has to be added to the outliers then.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    codebook: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    shift: torch.Tensor | None = None


def to_blocks(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """View a contiguous weight [out, in] as the blocks of the scheme's granularity."""
    out_features, in_features = weight.shape
    if scheme.granularity == "tensor":
        return weight.view(1, out_features, in_features)
    return weight.view(-1, 1, in_features // scheme.groups((out_features, in_features))[1])


def encode(blocks: torch.Tensor, scheme: Scheme, fit: Fit) -> torch.Tensor:
    """Nearest codes, as float32 in the blocks' shape; values outside the grid are clipped."""
    return nearest_codes(blocks / fit.scale[:, None, None], scheme, fit)


def nearest_codes(steps: torch.Tensor, scheme: Scheme, fit: Fit) -> torch.Tensor:
    """Nearest codes of blocks in units of their step sizes, as :func:`encode` gives them; ``steps`` may be written."""
    if fit.codebook is not None:
        return _nearest(steps, fit.codebook)
    return steps.add_(_offset(scheme, fit)).round_().clamp_(0, 2**scheme.bits - 1)


def decode(codes: torch.Tensor, scheme: Scheme, fit: Fit) -> torch.Tensor:
    """What float32 codes in the blocks' shape stand for; the result may use their memory."""
    if fit.codebook is not None:
        rows = fit.codebook.expand(codes.shape[0], -1)
        steps = rows.gather(1, codes.view(codes.shape[0], -1).long()).view(codes.shape)
    else:
        steps = codes.sub_(_offset(scheme, fit))
    return steps.mul_(fit.scale[:, None, None])


def round_trip(blocks: torch.Tensor, scheme: Scheme, fit: Fit) -> torch.Tensor:
    """What the weights become on the grid, float32 in the blocks' shape."""
    return decode(encode(blocks, scheme, fit), scheme, fit)


def _offset(scheme: Scheme, fit: Fit) -> float | torch.Tensor:
    """The code that stands for zero: a number, or [groups, 1, 1] for asymmetric schemes."""
    return scheme.offset if fit.zero_point is None else fit.zero_point.float()[:, None, None]


def _nearest(steps: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Codes, float32, of the entries of ascending codebooks [groups or 1, 2^bits] that are nearest."""
    borders = ((codebook[:, 1:] + codebook[:, :-1]) / 2).contiguous()
    flat = steps.view(steps.shape[0], -1)
    if borders.shape[0] == 1:
        codes = torch.bucketize(flat, borders[0], out_int32=True)
    else:
        codes = torch.searchsorted(borders, flat, out_int32=True)
    return codes.view(steps.shape).float()


def as_stored(fit: Fit, scheme: Scheme) -> Fit:
    """The fit with its numbers rounded as they are stored, still float32: codes must fit what will be read back.

    Step sizes of groups, and codebooks, have 16 bits. A step size beyond them raises :class:`WeightError`.
    """
    scale, codebook = fit.scale, fit.codebook
    if scheme.granularity == "group":
        if float(scale.max()) > _HALF_MAX:
            raise WeightError("a step size exceeds the float16 range; use the granularity `channel`")
        scale = scale.clamp(min=_HALF_TINY).half().float()
    if codebook is not None:
        codebook = codebook.half().float()
    return replace(fit, scale=scale, codebook=codebook)


def limits(scheme: Scheme) -> tuple[float, float]:
    """Largest magnitude in steps that a symmetric grid reaches on the negative and positive side."""
    return scheme.offset, 2**scheme.bits - 1 - scheme.offset


def group_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum blocks [groups, rows, columns] to [groups], bit-equal for every number of threads."""
    if values.shape[0] * values.shape[1] == 1:
        values = values.transpose(1, 2)  # one long row would be split among the threads
    rows = values.sum(dim=2)
    while rows.shape[1] > _SERIAL:
        missing = -rows.shape[1] % _SERIAL
        rows = torch.nn.functional.pad(rows, (0, missing)).view(rows.shape[0], -1, _SERIAL).sum(dim=2)
    return rows.sum(dim=1)


def mean_and_std(blocks: torch.Tensor, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per group [groups] of the float32 weights that are kept.

    The others are zero. Computed in float64 and independent of the number of threads.
    """
    wide = blocks.double()
    count = blocks[0].numel() if keep is None else group_sum(keep.double()).clamp_(min=1)
    mean = group_sum(wide) / count
    wide.sub_(mean[:, None, None])
    if keep is not None:
        wide.mul_(keep)
    return mean, (group_sum(wide.square_()) / count).sqrt()


def from_range(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> Fit:
    """Step size and zero point of the smallest grid that reaches from ``low`` to ``high``.

    A range that does not hold zero is widened to it; an empty range gets step 1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if scheme.symmetric:
        negative, positive = limits(scheme)
        scale = torch.maximum(high / positive, -low / negative)
        return Fit(torch.where(scale > 0, scale, torch.ones_like(scale)))
    scale = (high - low) / (2**scheme.bits - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (-low / scale).round().clamp(0, 2**scheme.bits - 1)
    return Fit(scale, zero_point.to(torch.uint8))


def block_range(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of each group, [groups] each."""
    # Two passes, each of them ten times faster than torch's aminmax along a dimension.
    return blocks.amin(dim=(1, 2)), blocks.amax(dim=(1, 2))
