"""Strategies: how a weight becomes quantization parameters."""

from lowbit.strategies.gptq import gptq
from lowbit.strategies.grid import Fit
from lowbit.strategies.minmax import minmax
from lowbit.strategies.mse import mse
from lowbit.strategies.registry import get_strategy, grid_scheme, needs_hessian, strategy
from lowbit.strategies.sigma import sigma

__all__ = ["Fit", "get_strategy", "gptq", "grid_scheme", "minmax", "mse", "needs_hessian", "sigma", "strategy"]
