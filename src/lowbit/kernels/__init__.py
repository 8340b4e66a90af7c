"""Execution of quantized tensors: each kernel stands beside the reference it is tested against."""

from lowbit.kernels.activations import note_origin, positive_step, round_inputs, round_static, round_tokens
from lowbit.kernels.blocks import block_linear, row_blocks
from lowbit.kernels.cache import WeightCache
from lowbit.kernels.encoder import EncoderLayer, Norm, encoder_layer, encoder_layer_reference
from lowbit.kernels.fold import Folded, Rest, fold, fold_values, keeps_codes
from lowbit.kernels.int8 import (
    ACTIVATIONS,
    KERNELS,
    Int8Weight,
    Kernel,
    best_kernel,
    int8_linear,
    kernels_absence,
    pack_weight,
)
from lowbit.kernels.linear import dense_scale_gradient, outlier_gradient, quant_linear, scale_gradient
from lowbit.kernels.native import LEVELS
from lowbit.kernels.onednn import saturates
from lowbit.kernels.scratch import (
    PackedWeight,
    has_scratch,
    pack_scratch,
    scratch_limit,
    scratch_linear,
    scratch_linear_reference,
    static_codes,
    token_codes,
)

__all__ = [
    "ACTIVATIONS",
    "KERNELS",
    "LEVELS",
    "EncoderLayer",
    "Folded",
    "Int8Weight",
    "Kernel",
    "Norm",
    "PackedWeight",
    "Rest",
    "WeightCache",
    "best_kernel",
    "block_linear",
    "dense_scale_gradient",
    "encoder_layer",
    "encoder_layer_reference",
    "fold",
    "fold_values",
    "has_scratch",
    "int8_linear",
    "keeps_codes",
    "kernels_absence",
    "note_origin",
    "outlier_gradient",
    "pack_scratch",
    "pack_weight",
    "positive_step",
    "quant_linear",
    "round_inputs",
    "round_static",
    "round_tokens",
    "row_blocks",
    "saturates",
    "scale_gradient",
    "scratch_limit",
    "scratch_linear",
    "scratch_linear_reference",
    "static_codes",
    "token_codes",
]
