"""What can be chosen in ``tune``, and what comes out of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import SchemeError
from lowbit.loop import PRECISIONS, SCHEDULES
from lowbit.recipe import Recipe

POSITIONS = ("backbone", "random", "gradient", "mix")
INITIAL = ("stored", "decoded")
CACHES = ("none", "bf16", "fp32")
_CHOICES = {
    "precision": PRECISIONS,
    "positions": POSITIONS,
    "initial": INITIAL,
    "schedule": SCHEDULES,
    "cache": CACHES,
}


@dataclass(frozen=True)
class TuneOptions:
    """Options of one run. None takes the default of the method; what a method has no use for is refused.

    Training: ``learning_rate`` of what the method is about (outlier values, step sizes, low-rank factors, all
    weights); ``head_learning_rate`` of the head and of what is trained along. ``warmup``: part of the steps in which
    the rates rise; ``schedule``: how they fall afterwards, ``linear`` or ``cosine`` to 0, or ``constant``.
    ``dropout``: its probability in all layers; None is 0 for a method that trains few values of a backbone, and the
    model's own for the others. ``batch_size``: rows of one optimizer step, over all processes; ``accumulate``: in how
    many parts each process works through its share of them, which saves memory. ``hold_out``: this part of the training
    rows is not trained on but evaluated after each epoch, and the values with the lowest loss are kept; ``patience``:
    stop after so many evaluations without a lower one. ``teacher``: folder of a float model fine-tuned for the task,
    whose logits and hidden states are learned along with the labels.

    What is trained: ``norms``, ``biases`` and step sizes (``scales``; None: of up to 4 bits) along with the
    outliers. ``budget``: at most this share of the weights of the block linears, counting everything but the head;
    None sets no limit. ``positions``: ``backbone`` trains its outliers, where the budget is short those that lie
    furthest from the grid; ``random``; ``gradient``: the largest gradients of the first batch; ``mix``: half and
    half of ``backbone`` and ``gradient``. ``initial``: whether a value starts as ``stored`` in the backbone or as
    ``decoded`` from its grid. ``rate_by_step``: the rate of each matrix goes by its step sizes. ``rank``: of
    ``lora`` and ``loftq`` without a budget. ``float_model``: folder of the model that the backbone was made of, for
    ``loftq``.

    Cost: ``precision``: ``auto`` uses bf16 autocast where the processor has instructions for it. ``cache``: keep a
    dense copy of the decoded weights, in the precision of the run. ``checkpointing``: compute activations again in
    the backward pass instead of keeping them. ``save_steps``: save the state of the run after so many steps (0: never).

    ``recipe``: how ``ptq`` and ``qat`` quantize.
    """

    epochs: float = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    warmup: float = 0.06
    schedule: str = "linear"
    dropout: float | None = None
    max_length: int = 128
    norms: bool = True
    biases: bool = True
    scales: bool | None = None
    budget: float | None = None
    positions: str = "backbone"
    initial: str = "stored"
    rate_by_step: bool = False
    rank: int = 8
    teacher: Path | None = None
    float_model: Path | None = None
    precision: str = "auto"
    cache: str = "none"
    checkpointing: bool = False
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
        if not 0 <= self.warmup < 1:
            raise SchemeError(f"cannot warm up for {self.warmup} of the steps; give a part below 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SchemeError(f"dropout is a probability from 0 to below 1, not {self.dropout}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise SchemeError(f"a budget is a share of the weights, above 0 and up to 1, not {self.budget}")
        if self.rank < 1:
            raise SchemeError(f"a rank is at least 1, not {self.rank}")
        if not 0 <= self.seed < 2**32:
            raise SchemeError(f"seed {self.seed} is outside 0 to 2^32 - 1")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SchemeError(f"unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form of what the result depends on, without the recipe."""
        values = dataclasses.asdict(self)
        del values["recipe"], values["save_steps"]
        for name in ("teacher", "float_model"):
            values[name] = None if values[name] is None else str(values[name])
        return values


@dataclass(frozen=True)
class TuneResult:
    """Outcome of one run; ``metrics`` are those of the reloaded result, by evaluation set.

    ``trained`` counts trained parameters by group; ``trained_share`` is all of them but the head over the weights of
    the block linears (1 where all weights are trained). ``seconds`` is training time, of this call if the run was
    resumed; ``rows`` were trained on, and ``steps`` led to the values that were kept.
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
