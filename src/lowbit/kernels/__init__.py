"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.activations import round_tokens
from lowbit.kernels.blocks import block_linear, row_blocks
from lowbit.kernels.cache import WeightCache
from lowbit.kernels.linear import dense_scale_gradient, outlier_gradient, quant_linear, scale_gradient
from lowbit.kernels.scratch import (
    PackedWeight,
    has_scratch,
    pack_scratch,
    scratch_limit,
    scratch_linear,
    scratch_linear_reference,
    token_codes,
)

__all__ = [
    "PackedWeight",
    "WeightCache",
    "block_linear",
    "dense_scale_gradient",
    "has_scratch",
    "outlier_gradient",
    "pack_scratch",
    "quant_linear",
    "round_tokens",
    "row_blocks",
    "scale_gradient",
    "scratch_limit",
    "scratch_linear",
    "scratch_linear_reference",
    "token_codes",
]
