"""What can be chosen in ``zeroshot``, and what comes out of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.errors import SchemeError
from lowbit.loop import PRECISIONS, SCHEDULES
from lowbit.recipe import Recipe
from lowbit.scheme import Scheme
from lowbit.zeroshot.sam import Ball

PERTURBED = ("weight", "latent")
_CHOICES = {"precision": PRECISIONS, "schedule": SCHEDULES, "perturb": PERTURBED}


@dataclass(frozen=True)
class ZeroShotOptions:
    """Options of one run. What a method has no use for is refused.

    Batches: ``batch_size`` rows of one step, over all processes; ``lengths``: the fewest and the most ordinary tokens
    of a row; ``pairs``: the share of rows that are pairs of texts, also of the inputs that are generated for ``gptq``
    and to measure by. ``generator``: folder or hub id of a causal
    language model; without one a small network of its own, and for the method ``sampled`` the model itself.
    ``candidates``: rows of the embedding table that a generated token is mixed of.

    Student: ``learning_rate`` of the weights; step sizes have theirs by proportion. ``warmup`` and ``schedule`` as in
    ``tune``. The loss is the distance between the logits of student and teacher at ``temperature``, and ``hidden``
    times that between their hidden states. SAM perturbs the quantized ``weight``, or the ``latent`` one, within a
    ball of radius ``rho``; ``relative``, ``adaptive`` and ``per_tensor`` as in :class:`lowbit.zeroshot.Ball`.

    Generator: it moves after every ``ratio`` steps of the student, at ``generator_rate``, up the same loss plus
    ``diversity`` times the entropy of the rows that its batch uses, in nats.

    Run: after every ``evaluate_steps`` steps the distance to the teacher is measured on generated texts that are not
    trained on, and the values with the smallest one are kept; ``patience``: stop after so many evaluations without a
    smaller one. ``save_steps``: save the state of the run after so many steps (0: never). ``precision``: ``auto`` uses
    bf16 autocast where the processor has instructions for it. ``checkpointing``: compute activations again in the
    backward pass instead of keeping them.
    """

    steps: int = 300
    batch_size: int = 32
    lengths: tuple[int, int] = (4, 48)
    pairs: float = 0.0
    generator: str | Path | None = None
    candidates: int = 16
    learning_rate: float = 1e-4
    warmup: float = 0.06
    schedule: str = "linear"
    temperature: float = 1.0
    hidden: float = 1.0
    rho: float = 0.001
    relative: bool = False
    adaptive: bool = False
    per_tensor: bool = False
    perturb: str = "weight"
    generator_rate: float = 1e-4
    ratio: int = 5
    diversity: float = 0.3
    evaluate_steps: int = 50
    patience: int | None = None
    save_steps: int = 100
    precision: str = "auto"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if min(self.steps, self.batch_size, self.ratio, self.evaluate_steps) < 1:
            raise SchemeError("steps, batch size, ratio and steps between evaluations must be at least 1")
        if len(self.lengths) != 2 or not 1 <= self.lengths[0] <= self.lengths[1]:
            raise SchemeError(
                f"lengths are the fewest and the most tokens of a row, as in 4 and 48, not {self.lengths}"
            )
        if not 0 <= self.pairs <= 1:
            raise SchemeError(f"the share of pairs is from 0 to 1, not {self.pairs}")
        for name in ("learning_rate", "generator_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise SchemeError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("hidden", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SchemeError(f"{name} is a weight in the loss, 0 or positive, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise SchemeError(f"cannot warm up for {self.warmup} of the steps; give a part below 1")
        if self.candidates < 1:
            raise SchemeError(f"a token is mixed of at least 1 candidate, not {self.candidates}")
        if self.patience is not None and self.patience < 1:
            raise SchemeError(f"patience counts evaluations, at least 1, not {self.patience}")
        if self.save_steps < 0:
            raise SchemeError(f"cannot save after {self.save_steps} steps; give a number of steps, or 0 for never")
        if not 0 <= self.seed < 2**32:
            raise SchemeError(f"seed {self.seed} is outside 0 to 2^32 - 1")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise SchemeError(f"unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}")
        self.ball()

    def ball(self) -> Ball:
        """The ball of SAM."""
        return Ball(self.rho, per_tensor=self.per_tensor, adaptive=self.adaptive, relative=self.relative)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form of what the result depends on."""
        values = dataclasses.asdict(self)
        del values["save_steps"]
        values["lengths"] = list(self.lengths)
        values["generator"] = None if self.generator is None else str(self.generator)
        return values


@dataclass(frozen=True)
class ZeroShotResult:
    """Outcome of one run.

    ``start_gap`` and ``gap`` are distances to the teacher on generated texts that are not trained on, of the student
    as it was quantized and as it was written; ``steps`` led to the latter, ``counts`` says what both players did.
    ``start_loss`` and ``end_loss`` are losses of the first and the last step on its own batch, None where nothing was
    trained. ``record`` has a row per step: ``step``, ``loss``, ``sharpness`` (how much SAM's perturbation raised the
    loss), ``generator_loss`` and ``entropy`` (of the rows that its batch used) where the generator moved, and ``gap``
    where it was measured. ``seconds`` is training
    time, of this call if the run was resumed.
    """

    path: Path
    method: str
    scheme: str
    start_gap: float
    gap: float
    steps: int
    seconds: float
    counts: Mapping[str, int] = field(default_factory=dict)
    record: tuple[Mapping[str, Any], ...] = ()

    @property
    def start_loss(self) -> float | None:
        """Loss of the first step."""
        return self.record[0]["loss"] if self.record else None

    @property
    def end_loss(self) -> float | None:
        """Loss of the last step."""
        return self.record[-1]["loss"] if self.record else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        losses = {"start_loss": self.start_loss, "end_loss": self.end_loss}
        return {**dataclasses.asdict(self), "path": str(self.path), **losses}


def parse_recipe(source: str | Path | Mapping[str, Any] | Scheme | Recipe) -> Recipe:
    """Like ``Recipe.parse``, but a scheme's short form that names no outliers has none, as is usual without data."""
    is_short = isinstance(source, str) and not source.endswith((".yaml", ".yml", ".json"))
    return Recipe.parse(short_form(source) if is_short else source)  # type: ignore[arg-type]


def short_form(scheme: str) -> str:
    """A scheme's short form in which the outliers are said."""
    return scheme if "o" in scheme else f"{scheme}o0"
