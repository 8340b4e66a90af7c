"""lowbit: quantize once without data, fine-tune each task by its outliers.

Importing the package registers the format with transformers, so that ``AutoModel*.from_pretrained`` reads backbones.
"""

from lowbit.adapter import load, merge
from lowbit.api import plan, quantize
from lowbit.evaluation import evaluate, perplexity
from lowbit.hf import LowbitConfig, save
from lowbit.hub import push
from lowbit.inspection import inspect, verify
from lowbit.plan import Plan
from lowbit.recipe import Recipe
from lowbit.runtime import predict
from lowbit.scheme import OutlierRule, Scheme
from lowbit.tuning import TuneOptions, tune
from lowbit.zeroshot import ZeroShotOptions, zeroshot

__version__ = "0.1.0"

__all__ = [
    "LowbitConfig",
    "OutlierRule",
    "Plan",
    "Recipe",
    "Scheme",
    "TuneOptions",
    "ZeroShotOptions",
    "__version__",
    "evaluate",
    "inspect",
    "load",
    "merge",
    "perplexity",
    "plan",
    "predict",
    "push",
    "quantize",
    "save",
    "tune",
    "verify",
    "zeroshot",
]
