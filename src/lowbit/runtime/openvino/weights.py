"""Quantized weights as int8 codes with one step size for each row, as integer matrix products take them."""

from __future__ import annotations

import torch

from lowbit.qtensor import QuantizedTensor

FULL, HALF = 127, 63


def code_limit() -> int:
    """The largest magnitude of a code with which this machine's integer products are exact.

    Without VNNI instructions they add two products of 8 bits in 16 bits and saturate there, so a code has 7 bits.
    """
    return FULL if torch.cpu._is_vnni_supported() else HALF


def fold_columns(tensor: QuantizedTensor, limit: int, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight [out, in] with its columns multiplied by the positive whole numbers ``columns`` float32 [in].

    Returns codes int8 [out, in] of magnitude at most ``limit`` and step sizes float32 [out, 1]. Outliers are in place.
    A row step s becomes s/k with k = floor(limit * s / max|w|), so that the stored codes stay exact and only outliers
    are rounded. Rows without a step of their own (groups, codebooks), or with no k >= 1, get steps of max|w| / limit.
    """
    weight = tensor.dequantize() * columns
    largest = weight.abs().amax(dim=1, keepdim=True)
    scale = largest / limit
    scheme = tensor.scheme
    if scheme.codebook_shared is None and scheme.granularity != "group":
        step = tensor.scale * (0.5 if scheme.levels == "midrise" else 1.0)
        parts = torch.floor(limit * step / largest * (1 + 1e-6))  # a code at the very limit keeps its k
        scale = torch.where((parts >= 1) & parts.isfinite(), step / parts, scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round_().clamp_(-limit, limit).to(torch.int8), scale


def table_codes(tensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A table [rows, width] as int8 codes and step sizes float32 [rows, 1], exactly; None where it has no such form."""
    scheme = tensor.scheme
    whole = scheme.levels == "full" and scheme.symmetric and scheme.granularity != "group"
    if not whole or tensor.outlier_count:
        return None
    codes = tensor.codes().to(torch.int16) - int(scheme.offset)
    return codes.to(torch.int8), tensor.scale.expand(tensor.shape[0], 1)
