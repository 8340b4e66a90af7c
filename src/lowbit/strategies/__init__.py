"""Strategies: how a weight becomes quantization parameters."""

from lowbit.strategies.minmax import minmax
from lowbit.strategies.mse import mse
from lowbit.strategies.registry import get_strategy, strategy
from lowbit.strategies.sigma import sigma

__all__ = ["get_strategy", "minmax", "mse", "sigma", "strategy"]
