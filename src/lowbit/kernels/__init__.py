"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.activations import note_origin, round_tokens
from lowbit.kernels.cache import WeightCache
from lowbit.kernels.fold import Folded, Rest, fold, fold_values
from lowbit.kernels.int8 import ACTIVATIONS, KERNELS, Int8Weight, Kernel, best_kernel, int8_linear, pack_weight
from lowbit.kernels.linear import dense_scale_gradient, outlier_gradient, quant_linear, scale_gradient
from lowbit.kernels.native import absence as kernels_absence

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "Folded",
    "Int8Weight",
    "Kernel",
    "Rest",
    "WeightCache",
    "best_kernel",
    "dense_scale_gradient",
    "fold",
    "fold_values",
    "int8_linear",
    "kernels_absence",
    "note_origin",
    "outlier_gradient",
    "pack_weight",
    "quant_linear",
    "round_tokens",
    "scale_gradient",
]
