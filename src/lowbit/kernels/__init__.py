"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.activations import round_tokens
from lowbit.kernels.blocks import block_linear, row_blocks
from lowbit.kernels.cache import WeightCache
from lowbit.kernels.int8 import (
    PackedWeight,
    has_int8,
    int8_limit,
    int8_linear,
    int8_linear_reference,
    pack_int8,
    token_codes,
)
from lowbit.kernels.linear import dense_scale_gradient, outlier_gradient, quant_linear, scale_gradient

__all__ = [
    "PackedWeight",
    "WeightCache",
    "block_linear",
    "dense_scale_gradient",
    "has_int8",
    "int8_limit",
    "int8_linear",
    "int8_linear_reference",
    "outlier_gradient",
    "pack_int8",
    "quant_linear",
    "round_tokens",
    "row_blocks",
    "scale_gradient",
    "token_codes",
]
