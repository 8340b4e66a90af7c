"""What can be chosen in ``tune``, and what comes out of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import SchemeError
from lowbit.loop import PRECISIONS
from lowbit.recipe import Recipe

METHODS = ("outliers", "full", "ptq")

# Outliers need a far larger step than whole matrices: 1e-3 moves them too little in a few epochs.
OUTLIER_LEARNING_RATE = 1e-2
REST_LEARNING_RATE = 5e-4
FULL_LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class TuneOptions:
    """Options of one run.

    ``learning_rate``: of the outlier values (method ``outliers``) or of all weights (``full`` and ``ptq``);
    ``head_learning_rate``: of head, norms, biases and step sizes (``outliers`` only). None takes the method's default.
    ``norms``, ``biases``, ``scales``: what is trained beside outliers and head. ``precision``: ``auto`` uses bf16
    autocast where the processor has instructions for it. ``recipe``: how ``ptq`` quantizes afterwards.
    """

    epochs: float = 3
    batch_size: int = 32
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    max_length: int = 128
    norms: bool = True
    biases: bool = True
    scales: bool = False
    precision: str = "auto"
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.head_learning_rate)
        if not 0 < self.epochs < math.inf or self.batch_size < 1 or self.max_length < 1:
            raise SchemeError("epochs, batch size and maximum length must be positive")
        if any(rate is not None and not 0 < rate < math.inf for rate in rates):
            raise SchemeError("learning rates must be positive")
        if not 0 <= self.seed < 2**32:
            raise SchemeError(f"seed {self.seed} is outside 0 to 2^32 - 1")
        if self.precision not in PRECISIONS:
            raise SchemeError(f"unknown precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form without the recipe."""
        values = dataclasses.asdict(self)
        values.pop("recipe")
        return values


@dataclass(frozen=True)
class TuneResult:
    """Outcome of one run; ``metrics`` are those of the reloaded result, by evaluation set.

    ``trained`` counts trained parameters by group; ``trained_share`` is all of them but the head over the weights of
    the block linears (1 for ``full`` and ``ptq``). ``seconds`` is training time.
    """

    path: Path
    method: str
    task: str
    metric: str
    score: float
    metrics: dict[str, dict[str, float]]
    trained: dict[str, int]
    trained_share: float
    seconds: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}
