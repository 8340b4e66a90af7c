"""Strategies: how a weight becomes quantization parameters."""

from lowbit.strategies.gptq import gptq
from lowbit.strategies.grid import Fit
from lowbit.strategies.hqq import hqq
from lowbit.strategies.kmeans import kmeans
from lowbit.strategies.lsq import lsq
from lowbit.strategies.minmax import minmax
from lowbit.strategies.mse import mse
from lowbit.strategies.percentile import percentile
from lowbit.strategies.registry import get_strategy, grid_scheme, needs_hessian, strategy, strategy_names
from lowbit.strategies.sigma import sigma

__all__ = [
    "Fit",
    "get_strategy",
    "gptq",
    "grid_scheme",
    "hqq",
    "kmeans",
    "lsq",
    "minmax",
    "mse",
    "needs_hessian",
    "percentile",
    "sigma",
    "strategy",
    "strategy_names",
]
