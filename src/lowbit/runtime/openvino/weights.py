"""Quantized weights as int8 codes with one step size for each row, as integer matrix products take them."""

from __future__ import annotations

import torch

from lowbit.qtensor import QuantizedTensor

LIMIT = 127


def fold_columns(tensor: QuantizedTensor, columns: torch.Tensor, *, spare: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight [out, in] with its columns multiplied by the positive whole numbers ``columns`` float32 [in].

    Returns codes int8 [out, in] and step sizes float32 [out, 1]. Outliers are in place. A row step s becomes s/k with
    the largest whole k >= 1 that keeps all codes within 127, so that the stored codes stay exact and only outliers are
    rounded. Rows without a step of their own (groups, codebooks), or without such a k, are rounded to the smallest
    step that does so. ``spare`` also keeps the sum of two neighbouring codes of one sign within 128, which spares
    saturating products; as outliers stand alone, this costs far less than codes of 7 bits.
    """
    weight = tensor.dequantize() * columns
    largest = (_pair_sums(weight) if spare else weight.abs()).amax(dim=1, keepdim=True)
    scale = largest / LIMIT
    scheme = tensor.scheme
    if scheme.codebook_shared is None and scheme.granularity != "group":
        step = tensor.scale * (0.5 if scheme.levels == "midrise" else 1.0)
        parts = torch.floor(LIMIT * step / largest * (1 + 1e-6))  # a code at the very limit keeps its k
        scale = torch.where((parts >= 1) & parts.isfinite(), step / parts, scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round_().clamp_(-LIMIT, LIMIT).to(torch.int8), scale


def _pair_sums(weight: torch.Tensor) -> torch.Tensor:
    """Of each two neighbours in a row [out, in] the sum of what is positive or of what is negative, if larger."""
    pairs = torch.nn.functional.pad(weight, (0, weight.shape[1] % 2)).view(weight.shape[0], -1, 2)
    return torch.maximum(pairs.clamp(min=0).sum(-1), -pairs.clamp(max=0).sum(-1))


def table_codes(tensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A table [rows, width] as int8 codes and step sizes float32 [rows, 1], exactly; None where it has no such form."""
    scheme = tensor.scheme
    whole = scheme.levels == "full" and scheme.symmetric and scheme.granularity != "group"
    if not whole or tensor.outlier_count:
        return None
    codes = tensor.codes().to(torch.int16) - int(scheme.offset)
    return codes.to(torch.int8), tensor.scale.expand(tensor.shape[0], 1)
