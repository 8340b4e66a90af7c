"""What a method of fine-tuning is to ``tune``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from lowbit.adapter import load
from lowbit.errors import AdapterError, SchemeError
from lowbit.tuning.options import TuneOptions

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A model ready for training, how many values are trained by group, and AdamW's parameter groups."""

    model: nn.Module
    trained: dict[str, int]
    groups: list[dict[str, Any]]


class Method(ABC):
    """One run of one method: it freezes a loaded model, and writes what came of it.

    ``from_backbone``: starts from a quantized model and gives an adapter; else from a float model, and gives a model.
    """

    from_backbone: ClassVar[bool]
    takes: ClassVar[frozenset[str]]  # the options that not every method has a use for

    def __init__(self, model: PreTrainedModel, folder: Path, options: TuneOptions) -> None:
        self.model, self.folder, self.options = model, folder, options

    @abstractmethod
    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Freeze what is not trained. ``first_batch`` gives the rows of the first step, as the model takes them."""

    @abstractmethod
    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write the trained result; ``fields`` are those of AdapterInfo that say what it is for."""

    def load(self, output: Path) -> PreTrainedModel:
        """The result as a user would load it."""
        return load(self.folder, output) if self.from_backbone else load(output)


_SPECIAL = (
    "norms",
    "biases",
    "scales",
    "budget",
    "positions",
    "initial",
    "rate_by_step",
    "rank",
    "float_model",
    "cache",
    "head_learning_rate",
)


def check_options(name: str, method: type[Method], options: TuneOptions) -> None:
    """Refuse an option that a method would not look at."""
    plain = TuneOptions()
    for option in _SPECIAL:
        if option not in method.takes and getattr(options, option) != getattr(plain, option):
            raise SchemeError(f"the method {name!r} has no use for --{option.replace('_', '-')}; leave it out")


def budget_left(options: TuneOptions, weights: int, trained: Mapping[str, int]) -> int | None:
    """How many values the budget leaves beside those ``trained`` by group, the head not counted; None without a budget.

    A budget that is spent already raises AdapterError.
    """
    if options.budget is None:
        return None
    counted = {group: count for group, count in trained.items() if group != "head" and count}
    left = int(options.budget * weights) - sum(counted.values())
    if left < 0:
        shares = ", ".join(f"{name} {100 * count / weights:.2f} %" for name, count in counted.items())
        raise AdapterError(
            f"a budget of {100 * options.budget:g} % of the weights is too small for {shares}; raise it, or train less"
        )
    return left
