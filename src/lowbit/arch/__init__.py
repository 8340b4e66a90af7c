"""Architectures: which modules are block linears, embeddings, ties and heads."""

from lowbit.arch.positions import position_limit
from lowbit.arch.roles import Role, base_prefix, find_module, is_head, relative_name, roles, tied_modules, untie
from lowbit.arch.swap import float_weight, swap_modules, weight_shape
from lowbit.arch.table import ARCHITECTURES, get_architecture

__all__ = [
    "ARCHITECTURES",
    "Role",
    "base_prefix",
    "find_module",
    "float_weight",
    "get_architecture",
    "is_head",
    "position_limit",
    "relative_name",
    "roles",
    "swap_modules",
    "tied_modules",
    "untie",
    "weight_shape",
]
