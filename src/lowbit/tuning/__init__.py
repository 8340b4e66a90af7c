"""Stage 2: outlier-aware fine-tuning, and the baselines it is compared with."""

from lowbit.loop import is_first
from lowbit.tuning.methods import METHODS
from lowbit.tuning.options import TuneOptions, TuneResult
from lowbit.tuning.prepare import activations_remade, finish, prepare
from lowbit.tuning.tune import tune

__all__ = ["METHODS", "TuneOptions", "TuneResult", "activations_remade", "finish", "is_first", "prepare", "tune"]
