"""Strategies: how a weight becomes quantization parameters."""

from lowbit.strategies.grid import Fit
from lowbit.strategies.minmax import minmax
from lowbit.strategies.mse import mse
from lowbit.strategies.registry import get_strategy, needs_hessian, strategy, strategy_names
from lowbit.strategies.sigma import sigma

__all__ = ["Fit", "get_strategy", "minmax", "mse", "needs_hessian", "sigma", "strategy", "strategy_names"]
