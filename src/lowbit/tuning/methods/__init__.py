"""The methods of fine-tuning behind one trainer, by name."""

from lowbit.tuning.methods.base import Method, Prepared, check_options
from lowbit.tuning.methods.lora import LoftQ, Lora
from lowbit.tuning.methods.qat import QAT
from lowbit.tuning.methods.sparse import Biases, Outliers, Random, Scales
from lowbit.tuning.methods.whole import Full, PostTraining

METHODS: dict[str, type[Method]] = {
    "outliers": Outliers,
    "random": Random,
    "scales": Scales,
    "bitfit": Biases,
    "lora": Lora,
    "loftq": LoftQ,
    "full": Full,
    "ptq": PostTraining,
    "qat": QAT,
}

__all__ = ["METHODS", "Method", "Prepared", "check_options"]
