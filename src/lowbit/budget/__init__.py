"""Budgets of the whole model: widths that meet a size, and outliers where the errors are."""

from lowbit.budget.bits import choose_bits
from lowbit.budget.sensitivity import output_changes
from lowbit.budget.spread import spread_outliers

__all__ = ["choose_bits", "output_changes", "spread_outliers"]
