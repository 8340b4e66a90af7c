"""Which weights are outliers, as sorted flat positions into a weight [out, in]."""

from __future__ import annotations

import math

import numpy as np
import torch

from lowbit.scheme import OutlierRule

_SAMPLE = 1 << 14
_MARGIN = 1.5
_SERIAL = 1 << 14  # elements; longer sums would be split by the number of threads


def count_outliers(rule: OutlierRule, weights: int) -> int | None:
    """Number of outliers among ``weights`` weights; None when it depends on the values (a sigma threshold)."""
    return None if rule.share is None else round(rule.share * weights)


def select(
    weight: torch.Tensor, rule: OutlierRule, error: torch.Tensor | None, generator: torch.Generator | None
) -> torch.Tensor:
    """Sorted int64 positions of the outliers of a float32 weight [out, in].

    ``error`` is ``|w - Q(w)|`` in the same shape, needed by the rule ``error``; ``generator`` (CPU) by
    ``random``. The result does not depend on the number of threads; ties go to the lower position.
    """
    flat = weight.reshape(-1)
    count = count_outliers(rule, flat.numel())
    if rule.rule == "random":
        assert count is not None
        chosen = torch.randperm(flat.numel(), generator=generator)[:count]
        return chosen.sort().values.to(weight.device)
    if rule.rule == "error":
        assert error is not None
        return largest(error.reshape(-1), count or 0)
    if rule.rule == "magnitude":
        return largest(flat.abs(), count or 0)
    wide = flat.double()
    mean = _sum(wide) / wide.numel()
    distance = (flat - mean).abs_()
    if count is None:
        assert rule.sigma is not None
        std = math.sqrt(_sum(wide.sub_(mean).square_()) / wide.numel())
        return (distance > rule.sigma * std).nonzero().view(-1)
    del wide
    return largest(distance, count)


def largest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Sorted positions of the ``count`` largest values of a flat tensor; ties go to the lower position.

    A threshold taken from a sample leaves few candidates, which is ten times faster than ranking all; when
    the sample misleads, all values are candidates.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    sample = score[:: max(1, score.numel() // _SAMPLE)]
    rank = min(sample.numel(), int(sample.numel() * count / score.numel() * _MARGIN) + 8)
    candidates = _at_least(score, float(sample.topk(rank).values[-1]))
    if candidates.numel() < count:
        candidates = torch.arange(score.numel(), device=score.device)
    values = score[candidates]
    threshold = values.topk(count, sorted=True).values[-1]
    above = candidates[values > threshold]
    ties = candidates[values == threshold][: count - above.numel()]
    return torch.cat([above, ties]).sort().values


def _at_least(score: torch.Tensor, threshold: float) -> torch.Tensor:
    """Ascending positions of the values of a flat tensor that reach a threshold."""
    if score.device.type == "cpu":  # numpy finds rare positions several times faster than torch does
        return torch.from_numpy(np.flatnonzero(score.numpy() >= np.float32(threshold)))
    return (score >= threshold).nonzero().view(-1)


def _sum(flat: torch.Tensor) -> float:
    """Sum of a flat float64 tensor: blocks that one thread sums each, then their exact total."""
    whole = flat.numel() - flat.numel() % _SERIAL
    blocks = flat[:whole].view(-1, _SERIAL).sum(dim=1).tolist()
    return math.fsum([*blocks, float(flat[whole:].sum())])
