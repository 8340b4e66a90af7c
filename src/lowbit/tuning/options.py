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
    ``batch_size``: rows of one optimizer step, over all processes; ``accumulate``: in how many parts each process works
    through its share of them, which saves memory. ``save_steps``: save the state of the run after so many steps (0:
    never). ``hold_out``: this part of the training rows is not trained on but evaluated after each epoch, and the
    values with the lowest loss are kept; ``patience``: stop after so many evaluations without a lower one.
    """

    epochs: float = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    max_length: int = 128
    norms: bool = True
    biases: bool = True
    scales: bool = False
    precision: str = "auto"
    seed: int = 0
    save_steps: int = 500
    hold_out: float = 0.0
    patience: int | None = None
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        rates = (self.learning_rate, self.head_learning_rate)
        if not 0 < self.epochs < math.inf or self.batch_size < 1 or self.max_length < 1:
            raise SchemeError("epochs, batch size and maximum length must be positive")
        if not 1 <= self.accumulate <= self.batch_size:
            raise SchemeError(f"a batch of {self.batch_size} rows cannot be accumulated in {self.accumulate} parts")
        if self.save_steps < 0:
            raise SchemeError(f"cannot save after {self.save_steps} steps; give a number of steps, or 0 for never")
        if not 0 <= self.hold_out < 1:
            raise SchemeError(f"cannot hold out {self.hold_out} of the training rows; give a part below 1")
        if self.patience is not None and (self.patience < 1 or not self.hold_out):
            raise SchemeError("patience counts evaluations, at least 1, on held-out rows; give a part to hold out, too")
        if any(rate is not None and not 0 < rate < math.inf for rate in rates):
            raise SchemeError("learning rates must be positive")
        if not 0 <= self.seed < 2**32:
            raise SchemeError(f"seed {self.seed} is outside 0 to 2^32 - 1")
        if self.precision not in PRECISIONS:
            raise SchemeError(f"unknown precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form of what the result depends on, without the recipe."""
        values = dataclasses.asdict(self)
        del values["recipe"], values["save_steps"]
        return values


@dataclass(frozen=True)
class TuneResult:
    """Outcome of one run; ``metrics`` are those of the reloaded result, by evaluation set.

    ``trained`` counts trained parameters by group; ``trained_share`` is all of them but the head over the weights of
    the block linears (1 for ``full`` and ``ptq``). ``seconds`` is training time, of this call if the run was resumed;
    ``rows`` were trained on, and ``steps`` led to the values that were kept.
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
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**dataclasses.asdict(self), "path": str(self.path)}
