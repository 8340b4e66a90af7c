"""The game between student and generator, step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lowbit.errors import SchemeError, TrainingError
from lowbit.loop import Progress, SavedRun, model_digest, processes, rate_by_step, trainable_attention, use_bf16
from lowbit.zeroshot.batches import GeneratedBatch
from lowbit.zeroshot.diversity import row_entropy
from lowbit.zeroshot.minimax import SamSga
from lowbit.zeroshot.objective import Objective
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.sam import Ball
from lowbit.zeroshot.sources import Source
from lowbit.zeroshot.state import GameState
from lowbit.zeroshot.student import block_paths, checkpointed, parameter_groups, targets

_SKIPPED = 3  # steps in a row without a finite loss end a run
_FURTHER = 3.0  # times its start distance: a student that far from its teacher has diverged
_DRAW, _ASCEND = 0, 1  # what random numbers of a step are for


@dataclass(frozen=True)
class Trained:
    """Gaps before and after, the steps behind the values that were kept, counts, record and seconds of this call."""

    start_gap: float
    gap: float
    steps: int
    counts: dict[str, int]
    record: tuple[dict[str, Any], ...]
    seconds: float


def train(
    student: PreTrainedModel,
    source: Source,
    objective: Objective,
    measure: Callable[[PreTrainedModel], float],
    options: ZeroShotOptions,
    *,
    ball: Ball,
    ascends: bool = True,
    saved: SavedRun | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a fake-quantized ``student`` in place; the values with the smallest gap, as ``measure`` says it, are kept.

    Each step the student descends on a batch of ``source``; with ``ascends``, what can be trained in the source ascends
    on another one after every ``options.ratio`` of them. A run that ``saved`` holds goes on where it was saved last,
    and ends as if it had never stopped. Under ``torch.distributed`` the processes share each batch in equal parts, or
    :class:`SchemeError`. Losses that are not finite three times in a row, or a gap that is not finite or three times
    that of the start and above 1, raise :class:`TrainingError`.
    """
    start = time.perf_counter()
    world = processes()
    if options.batch_size % world.num_processes:
        raise SchemeError(
            f"a batch of {options.batch_size} rows cannot be shared evenly by {world.num_processes} processes; "
            "use a multiple"
        )
    game = _Game(student, source, objective, options, ball, ascends, (world.process_index, world.num_processes))
    state = game.state
    if saved is not None and (saved.exists() or options.save_steps):
        saved.identify(processes=world.num_processes, model=model_digest(student), source=source.digest())
        if saved.exists():
            saved.restore(state)
    game.measure = lambda: measure(student)
    with checkpointed(student, block_paths(student)) if options.checkpointing else nullcontext():
        if state.start_gap is None:
            game.judge_start()
        while not game.is_over():
            try:
                row = game.step()
            except TrainingError:
                if saved is not None and world.is_main_process:
                    saved.remove()  # going on from there would end the same way
                raise
            if saved is not None and world.is_main_process and _due(state.student.step, options.save_steps):
                saved.save(state)
            if progress is not None and world.is_main_process:
                progress(state.student.step, options.steps, _said(row, state.student.best_loss))
    state.student.take_best()
    assert state.start_gap is not None
    return Trained(
        state.start_gap,
        state.student.best_loss,
        state.student.best_step,
        asdict(state.counts),
        tuple(state.record),
        time.perf_counter() - start,
    )


class _Game:
    """Both players and their state; a step is a function of its number."""

    measure: Callable[[], float]

    def __init__(
        self,
        student: PreTrainedModel,
        source: Source,
        objective: Objective,
        options: ZeroShotOptions,
        ball: Ball,
        ascends: bool,
        part: tuple[int, int],
    ) -> None:
        self._student, self._source, self._objective, self._options = student, source, objective, options
        self._part, self._bf16 = part, use_bf16(options.precision, student.device, student)
        groups = parameter_groups(student, options.learning_rate)
        minimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        players = source.players() if ascends else []
        maximizer = None
        if players:
            maximizer = torch.optim.AdamW(players, options.generator_rate, weight_decay=0.0, fused=True, maximize=True)
        self._optimizers = [optimizer for optimizer in (minimizer, maximizer) if optimizer is not None]
        for group in self._groups():
            group["initial_lr"] = group["lr"]
        self._rate = rate_by_step(options.schedule, options.warmup, options.steps)
        self.state = GameState(minimizer, maximizer)
        self._core = SamSga(
            minimizer,
            maximizer,
            targets=targets(student, options.perturb) if ball.rho else (),
            ball=ball,
            ratio=options.ratio,
            seed=options.seed,
            counts=self.state.counts,
        )

    def is_over(self) -> bool:
        """Whether all steps are done, or the gap has not become smaller for too long."""
        done, patience = self.state.student, self._options.patience
        return done.step >= self._options.steps or (patience is not None and done.misses >= patience)

    def judge_start(self) -> None:
        """Measure the gap before the first step."""
        gap = self.measure()
        if not math.isfinite(gap):
            raise TrainingError(f"the quantized model is infinitely far from its teacher at the start ({gap})")
        self.state.start_gap = gap
        self.state.student.judge(gap)

    def step(self) -> dict[str, Any]:
        """One step of the student, one of the generator if it is due, and a measurement if that is; their record."""
        number = self.state.student.step
        for group in self._groups():
            group["lr"] = group["initial_lr"] * self._rate(number)
        with torch.no_grad(), self._autocast():
            batch = self._own_part(self._drawn(number, _DRAW))
            target = self._objective.target(batch)
        found = self._core.descend(lambda: self._loss(batch, target))
        row = {"step": number + 1, "loss": found.loss, "sharpness": found.sharpness}
        if self._core.ascent_due:
            row |= self._ascend(number)
        self.state.student.step += 1
        self.state.record.append(row)
        self._check_losses()
        if _due(number + 1, self._options.evaluate_steps) or number + 1 == self._options.steps:
            row["gap"] = self.measure()
            self._check_gap(row["gap"])
            self.state.student.judge(row["gap"])
        return row

    def _drawn(self, step: int, use: int) -> GeneratedBatch:
        """A batch; all processes draw the whole."""
        seed = np.random.SeedSequence([self._options.seed, step, use]).generate_state(1, np.uint64)[0]
        rng = torch.Generator().manual_seed(int(seed))
        return self._source.draw(self._options.batch_size, rng)

    def _own_part(self, batch: GeneratedBatch) -> GeneratedBatch:
        return batch.part(*self._part).to(self._student.device)

    def _loss(self, batch: GeneratedBatch, target: Any) -> torch.Tensor:
        with self._autocast():
            return self._objective.loss(self._student, target, batch)

    def _ascend(self, step: int) -> dict[str, float]:
        """One step of the generator: how far it got the student from its teacher, and how varied its batch was."""
        entropy = 0.0

        def gain() -> torch.Tensor:
            nonlocal entropy
            with self._autocast():
                batch = self._drawn(step, _ASCEND)
                part = self._own_part(batch)
                loss = self._objective.loss(self._student, self._objective.target(part), part)
            assert batch.mixture is not None
            variety = row_entropy(batch.mixture)  # of the whole batch, in every process
            entropy = float(variety.detach())
            return loss + self._options.diversity * variety.to(loss.device)

        found = self._core.ascend(gain)
        return {"generator_loss": found - self._options.diversity * entropy, "entropy": entropy}

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        device = self._student.device
        with (
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16),
            trainable_attention(device, self._bf16),
        ):
            yield

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _check_losses(self) -> None:
        latest = self.state.record[-_SKIPPED:]
        broken = [row for row in latest if not math.isfinite(row["loss"] + row["sharpness"])]
        if len(broken) == _SKIPPED:
            self._stop(
                f"the loss is {latest[-1]['loss']:g}, with the perturbation of SAM another {broken[-1]['sharpness']:g}"
            )

    def _check_gap(self, gap: float) -> None:
        start = self.state.start_gap
        assert start is not None
        if not gap <= max(1.0, _FURTHER * start):
            self._stop(f"the distance to the teacher has grown from {start:.4g} to {gap:.4g}")

    def _stop(self, what: str) -> None:
        options = self._options
        raise TrainingError(
            f"step {self.state.student.step}: {what}; lower the learning rate ({options.learning_rate:g}) "
            f"or rho ({options.rho:g})"
        )


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _said(row: dict[str, Any], best: float) -> str:
    return f"loss {row['loss']:.4g}, sharpness {row['sharpness']:.2g}, smallest gap {best:.4g}"
