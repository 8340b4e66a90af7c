"""Architectures: which modules are block linears, embeddings, ties and heads."""

from lowbit.arch.positions import position_limit
from lowbit.arch.roles import (
    Role,
    base_prefix,
    drop_pooler,
    find_module,
    is_head,
    own_tensors,
    relative_name,
    roles,
    tied_modules,
    untie,
)
from lowbit.arch.swap import float_weight, pack_model, swap_fake_modules, swap_modules, weight_shape
from lowbit.arch.table import ARCHITECTURES

__all__ = [
    "ARCHITECTURES",
    "Role",
    "base_prefix",
    "drop_pooler",
    "find_module",
    "float_weight",
    "is_head",
    "own_tensors",
    "pack_model",
    "position_limit",
    "relative_name",
    "roles",
    "swap_fake_modules",
    "swap_modules",
    "tied_modules",
    "untie",
    "weight_shape",
]
