"""k-means: a codebook of the weights' cluster means, as in GOBO (Zadeh et al. 2020, arXiv 2005.03842)."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from lowbit.scheme import CODEBOOKS, Scheme
from lowbit.strategies.grid import Fit, group_sum, mean_and_std
from lowbit.strategies.groups import chunked, sorted_groups
from lowbit.strategies.registry import strategy

_ROUNDS = 60  # Lloyd's; real weights settle in about 40
_SHARED_ROUNDS = 30  # each of them also moves the step sizes
_SAMPLE = 1 << 16  # weights of a group from which the first entries are read


@strategy(*CODEBOOKS)
def kmeans(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """Codebooks with the smallest squared error that Lloyd's iteration finds.

    Each group has its own codebook in units of its largest entry, or (levels ``shared-codebook``) all groups share one
    in units of their step sizes, which are then fitted in turns with it.

    GOBO stops at the smallest absolute error and starts from bins of equal population; here it is the squared error,
    and entries start as dense as the cube root of the weights' density, which is best for many levels (Panter and
    Dite 1951) and ends nearer to the optimum.
    """
    if scheme.codebook_shared and blocks.shape[0] > 1:
        return _shared(blocks, scheme, keep)
    return _one_each(blocks, scheme, keep)


@chunked
def _one_each(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """A codebook for each group."""
    clusters = _Clusters(blocks, keep)
    entries = _first_entries(clusters.values, clusters.count, 2**scheme.bits)
    previous = None
    for _ in range(_ROUNDS):
        ends = clusters.ends(entries)
        if previous is not None and torch.equal(ends, previous):
            break
        previous = ends
        sums, counts = clusters.totals(ends)
        entries = torch.where(counts > 0, sums / counts.clamp(min=1), entries)
        entries = _fill_empty(clusters.values, ends, counts, entries)
    scale = entries.abs().amax(dim=1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Fit(scale.float(), codebook=(entries / scale[:, None]).float())


def _shared(blocks: torch.Tensor, scheme: Scheme, keep: torch.Tensor | None) -> Fit:
    """One codebook for all groups and a step size for each, least squares in turns."""
    clusters = _Clusters(blocks, keep)
    mean, std = mean_and_std(blocks, keep)
    scale = (mean.square() + std.square()).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    pool = (clusters.values / scale[:, None]).view(1, 1, -1)
    entries = _first_entries(*sorted_groups(pool, pool.isfinite()), 2**scheme.bits)
    for _ in range(_SHARED_ROUNDS):
        sums, counts = clusters.totals(clusters.ends(entries * scale[:, None]))
        weight = _over_groups(counts * scale[:, None].square())
        entries = torch.where(weight > 0, _over_groups(sums * scale[:, None]) / weight.clamp(min=1e-300), entries)
        energy, correlation = (counts * entries.square()).sum(dim=1), (sums * entries).sum(dim=1)
        scale = torch.where((energy > 0) & (correlation > 0), correlation / energy.clamp(min=1e-300), scale)
    return Fit(scale.float(), codebook=entries.float())


class _Clusters:
    """Sorted groups: a cluster is a run of values, and its sum the difference of two running sums."""

    def __init__(self, blocks: torch.Tensor, keep: torch.Tensor | None) -> None:
        self.values, self.count = sorted_groups(blocks, keep)
        finite = self.values.masked_fill(self.values.isinf(), 0)
        self._running = pad(finite.cumsum(dim=1, dtype=torch.float64), (1, 0))

    def ends(self, entries: torch.Tensor) -> torch.Tensor:
        """Where the clusters of ascending float64 entries [groups, k] begin and end, int64 [groups, k + 1]."""
        borders = ((entries[:, 1:] + entries[:, :-1]) / 2).float().contiguous()
        inner = torch.searchsorted(self.values, borders)
        return torch.cat([torch.zeros_like(inner[:, :1]), inner, self.count[:, None]], dim=1)

    def totals(self, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums, float64, and numbers, int64, of the weights of each cluster [groups, k]."""
        return self._running.gather(1, ends).diff(dim=1), ends.diff(dim=1)


def _first_entries(values: torch.Tensor, count: torch.Tensor, entries: int) -> torch.Tensor:
    """Float64 entries [groups, k] to start from, of ascending values [groups, n].

    A gap between neighbours is the inverse of the density there, so the cube root of the density integrates to
    the sum of gap^(2/3); the entries halve its k equal parts.
    """
    stride = max(1, values.shape[1] // _SAMPLE)
    values, count = values[:, ::stride], (count + stride - 1) // stride
    gaps = values.diff(dim=1)
    reached = pad(gaps.masked_fill(~gaps.isfinite(), 0).pow(2 / 3).cumsum(dim=1, dtype=torch.float64), (1, 0))
    parts = (torch.arange(entries, dtype=torch.float64, device=values.device) + 0.5) / entries
    at = torch.searchsorted(reached, reached[:, -1:] * parts)
    if values.shape[1] <= entries:  # one for each weight
        at = torch.arange(entries, device=values.device).expand_as(at)
    found = values.gather(1, torch.minimum(at, (count[:, None] - 1).clamp(min=0))).double()
    return torch.where(count[:, None] > 0, found, torch.zeros_like(found))


def _fill_empty(values: torch.Tensor, ends: torch.Tensor, counts: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Move the entries of empty clusters to the far ends of the widest ones, which can only lower the error."""
    empty = counts == 0
    first, last = ends[:, :-1].clamp(max=values.shape[1] - 1), (ends[:, 1:] - 1).clamp(min=0)
    low, high = values.gather(1, first), values.gather(1, last)
    width = torch.where(empty, torch.zeros_like(low), high - low)
    rows = (empty.any(dim=1) & (width > 0).any(dim=1)).nonzero().squeeze(1)
    if not rows.numel():
        return entries
    low, high, width, empty, found = (part[rows] for part in (low, high, width, empty, entries))
    far = torch.where(high - found > found - low, high, low).double()
    to_fill = empty.int().argsort(dim=1, descending=True, stable=True)
    widest = width.argsort(dim=1, descending=True, stable=True)
    useful = empty.gather(1, to_fill) & (width.gather(1, widest) > 0)
    moved = torch.where(useful, far.gather(1, widest), found.gather(1, to_fill))
    return entries.index_copy(0, rows, found.scatter(1, to_fill, moved).sort(dim=1).values)


def _over_groups(values: torch.Tensor) -> torch.Tensor:
    """Sum [groups, k] to [1, k], bit-equal for every number of threads."""
    return group_sum(values.t()[:, None])[None]
