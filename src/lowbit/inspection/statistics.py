"""Numbers that describe one quantized weight."""

from __future__ import annotations

import math
from typing import Any

import torch

from lowbit.qtensor import QuantizedTensor

_TOP = 3  # rows and columns that are listed


def statistics(tensor: QuantizedTensor) -> dict[str, Any]:
    """What the codes, step sizes and outliers of one weight look like.

    ``scale_min`` and ``scale_max``: the step sizes. ``at_ends``: share of the codes on the lowest or highest level,
    clipped weights among them. ``entropy``: bits of information per code; far below the scheme's bits means levels
    that are hardly used. The outliers' places do not count in either. Then :func:`outlier_statistics`.
    """
    positions = tensor.outlier_positions()
    codes = tensor.codes().view(-1)
    levels = 2**tensor.scheme.bits
    counts = torch.bincount(codes, minlength=levels) - torch.bincount(codes[positions], minlength=levels)
    share = counts.double() / max(1, int(counts.sum()))
    return {
        "scale_min": float(tensor.scale.min()),
        "scale_max": float(tensor.scale.max()),
        "at_ends": float(share[0] + share[-1]),
        "entropy": float(-(share * share.clamp(min=1e-300).log2()).sum()),
        **outlier_statistics(tensor, positions),
    }


def outlier_statistics(tensor: QuantizedTensor, positions: torch.Tensor) -> dict[str, Any]:
    """How many outliers there are, how large, and where.

    ``outlier_largest``: the largest magnitude; ``outlier_reach``: that over the largest magnitude of the dense part,
    so how many times wider the grid would have to be without outliers; ``outlier_sigma``: their median magnitude in
    standard deviations of the dense part. ``outlier_rows`` and ``outlier_columns``: the [index, count] of those that
    hold the most. Sizes are None without outliers.
    """
    size = tensor.shape[0] * tensor.shape[1]
    count = tensor.outlier_count
    found: dict[str, Any] = {"outliers": count, "outlier_share": count / size}
    if not count or tensor.outlier_value is None or tensor.outlier_ptr is None or tensor.outlier_col is None:
        empty: dict[str, Any] = dict.fromkeys(("outlier_largest", "outlier_reach", "outlier_sigma"))
        return {**found, **empty, "outlier_rows": [], "outlier_columns": []}
    dense = tensor.dequantize_dense().view(-1)
    dense[positions] = 0
    kept = max(1, size - count)
    mean = float(dense.sum(dtype=torch.float64)) / kept
    sigma = math.sqrt(max(0.0, norm(dense) ** 2 / kept - mean**2))
    reach = float(torch.linalg.vector_norm(dense, ord=math.inf))
    values = tensor.outlier_value.float().abs()
    return {
        **found,
        "outlier_largest": float(values.max()),
        "outlier_reach": ratio(float(values.max()), reach),
        "outlier_sigma": ratio(float(values.median()), sigma),
        "outlier_rows": _most(tensor.outlier_ptr.diff()),
        "outlier_columns": _most(torch.bincount(tensor.outlier_col.long())),
    }


def norm(values: torch.Tensor) -> float:
    """Euclidean norm, summed in double precision."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``; None where ``whole`` is zero."""
    return part / whole if whole else None


def difference(values: torch.Tensor, reference: torch.Tensor) -> float | None:
    """``||values - reference|| / ||reference||`` in float32; None where the reference is all zero."""
    reference = reference.float()
    return ratio(norm(values.float() - reference), norm(reference))


def _most(counts: torch.Tensor) -> list[list[int]]:
    """Index and count of the largest counts; ties go to the lower index."""
    order = counts.sort(descending=True, stable=True).indices[:_TOP].tolist()
    return [[index, int(counts[index])] for index in order if counts[index] > 0]
