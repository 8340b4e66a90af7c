"""The uniform grid: weight = (code - offset) * scale, code in 0 .. 2^bits - 1.

Weights come as [groups, rows, columns] blocks that share one step size per group: a channel is
[out, 1, in], a whole tensor [1, out, in], groups [out * in / size, 1, size]. Step sizes are [groups].
"""

from __future__ import annotations

import torch

from lowbit.scheme import Scheme

_SERIAL = 1 << 14  # elements; sums longer than this would be split by the number of threads


def to_blocks(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """View a contiguous weight [out, in] as the blocks of the scheme's granularity."""
    out_features, in_features = weight.shape
    if scheme.granularity == "tensor":
        return weight.view(1, out_features, in_features)
    return weight.view(-1, 1, in_features // scheme.groups((out_features, in_features))[1])


def offset_of(scheme: Scheme, zero_point: torch.Tensor | None) -> float | torch.Tensor:
    """The code that stands for zero: a number, or [groups, 1, 1] for asymmetric schemes."""
    return scheme.offset if zero_point is None else zero_point.float()[:, None, None]


def encode(blocks: torch.Tensor, scheme: Scheme, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    """Nearest codes, as float32 in the blocks' shape; values outside the grid are clipped."""
    codes = blocks / scale[:, None, None]
    return codes.add_(offset_of(scheme, zero_point)).round_().clamp_(0, 2**scheme.bits - 1)


def round_trip(
    blocks: torch.Tensor, scheme: Scheme, scale: torch.Tensor, zero_point: torch.Tensor | None
) -> torch.Tensor:
    """What the weights become on the grid, float32 in the blocks' shape."""
    codes = encode(blocks, scheme, scale, zero_point)
    return codes.sub_(offset_of(scheme, zero_point)).mul_(scale[:, None, None])


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


def from_range(low: torch.Tensor, high: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Step size and zero point [groups] of the smallest grid that reaches from ``low`` to ``high``.

    A range that does not hold zero is widened to it; an empty range gets step 1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if scheme.symmetric:
        negative, positive = limits(scheme)
        scale = torch.maximum(high / positive, -low / negative)
        return torch.where(scale > 0, scale, torch.ones_like(scale)), None
    scale = (high - low) / (2**scheme.bits - 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (-low / scale).round().clamp(0, 2**scheme.bits - 1)
    return scale, zero_point.to(torch.uint8)


def block_range(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of each group, [groups] each."""
    # Two passes, each of them ten times faster than torch's aminmax along a dimension.
    return blocks.amin(dim=(1, 2)), blocks.amax(dim=(1, 2))
