"""Outliers spread over the whole model: as many in each matrix as one common threshold on the error gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from lowbit.errors import naming
from lowbit.outliers import count_outliers
from lowbit.plan import Plan, PlanEntry, with_schemes
from lowbit.qtensor import check_finite, outlier_errors
from lowbit.scheme import Scheme

_LOW, _HIGH, _STEPS = -24, 8, 128  # octaves below and above the scale of a matrix, and bins in each

Weight = Callable[[PlanEntry], torch.Tensor]
Progress = Callable[[int, int, str], None]


def spread_outliers(plan: Plan, weight: Weight, progress: Progress | None = None) -> Plan:
    """The plan with the share of each module whose outliers its recipe spreads over the model.

    ``weight`` gives the float weight [out, in] of an entry; each is read once, and of each only a histogram of its
    errors is kept, relative to the root mean square of its weights. All histograms together give the threshold that
    leaves as many outliers as the shares ask for, and the threshold gives each module its count. A module without any
    above it has none; none has more than half of its weights.
    """
    entries = [entry for entry in plan.quantized if _spreads(entry.scheme)]
    if not entries:
        return plan
    histograms, budget = {}, 0
    for done, entry in enumerate(entries):
        if progress is not None:
            progress(done, len(entries), entry.name)
        scheme = entry.scheme
        assert scheme is not None
        assert scheme.outliers is not None
        matrix = weight(entry).detach().float().contiguous()
        budget += count_outliers(scheme.outliers, matrix.numel()) or 0
        with naming(entry.name):
            check_finite(matrix)
            histograms[entry.name] = error_histogram(matrix, scheme)
    counts = share_out(histograms, budget)
    return with_schemes(plan, {entry.name: _with_count(entry, counts[entry.name]) for entry in entries})


def error_histogram(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """How many weights of a float32 matrix have which error, int64 [bins] from small to large on a log scale."""
    error = outlier_errors(weight, scheme)
    scale = math.sqrt(float(weight.double().square().mean())) or 1.0
    bins = (error.view(-1) / scale).log2_().sub_(_LOW).mul_(_STEPS)
    bins = bins.clamp_(0, (_HIGH - _LOW) * _STEPS - 1).to(torch.int32)
    return torch.bincount(bins, minlength=(_HIGH - _LOW) * _STEPS).cpu()


def share_out(histograms: Mapping[str, torch.Tensor], budget: int) -> dict[str, int]:
    """Counts by name that add up to ``budget``: all of the upper bins, and of the bin at the border an equal part."""
    stacked = torch.stack(list(histograms.values()))
    above = stacked.sum(dim=0).flip(0).cumsum(0).flip(0)  # weights in this bin or a higher one
    border = int((above >= budget).nonzero().max())
    whole = stacked[:, border + 1 :].sum(dim=1)
    missing = budget - int(whole.sum())
    edge = stacked[:, border].cumsum(0)
    part = edge * missing // max(int(edge[-1]), 1)  # rounded as a running sum, so that the total is exact
    counts = whole + part - torch.cat([part.new_zeros(1), part[:-1]])
    return dict(zip(histograms, counts.tolist(), strict=True))


def _spreads(scheme: Scheme | None) -> bool:
    return scheme is not None and scheme.outliers is not None and scheme.outliers.spread == "model"


def _with_count(entry: PlanEntry, count: int) -> Scheme:
    """The scheme with a share of its own that comes to ``count`` outliers."""
    assert entry.scheme is not None
    assert entry.scheme.outliers is not None
    assert entry.shape is not None
    size = math.prod(entry.shape)
    count = min(count, size // 2)
    rule = replace(entry.scheme.outliers, share=count / size, spread="matrix") if count else None
    return replace(entry.scheme, outliers=rule)
