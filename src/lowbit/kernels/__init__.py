"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.activations import note_origin, round_tokens
from lowbit.kernels.cache import WeightCache
from lowbit.kernels.linear import dense_scale_gradient, outlier_gradient, quant_linear, scale_gradient

__all__ = [
    "WeightCache",
    "dense_scale_gradient",
    "note_origin",
    "outlier_gradient",
    "quant_linear",
    "round_tokens",
    "scale_gradient",
]
