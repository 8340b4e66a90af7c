"""The training loop: transformers' Trainer, with batches, random numbers and schedule that follow from the step."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from lowbit.checkpoint import quiet_transformers
from lowbit.errors import SchemeError
from lowbit.loop import (
    Progress,
    SavedRun,
    TrainingState,
    check_lengths,
    default_device,
    isolated_rng,
    model_digest,
    processes,
    rate_by_step,
    rows_digest,
    trainable_attention,
    use_bf16,
)
from lowbit.tuning.batches import Collate, Items, MicroBatches, Row, one_item, plan_batches, steps_per_epoch
from lowbit.tuning.distill import Loss, label_loss
from lowbit.tuning.dropout import dropout_of
from lowbit.tuning.held_out import held_out_loss
from lowbit.tuning.options import TuneOptions
from lowbit.tuning.prepare import activations_remade


@dataclass(frozen=True)
class Trained:
    """Seconds of this call, and the steps behind the values that the model has now."""

    seconds: float
    steps: int


def train(
    model: PreTrainedModel,
    features: Sequence[Row],
    groups: list[dict[str, Any]],
    options: TuneOptions,
    *,
    collate: Collate,
    items: Items = one_item,
    loss: Loss = label_loss,
    held_out: Sequence[Row] = (),
    saved: SavedRun | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train parameter ``groups`` (as AdamW takes them) in place.

    ``collate`` makes the model's inputs of some rows; ``loss`` gives their mean loss, by default the model's own, and
    ``items`` says over how many items of a row that mean goes. The gradient norm is clipped at 1. ``held_out`` rows are
    evaluated after each epoch, and the values with the lowest loss are kept. A run that ``saved`` holds goes on where
    it was saved last, and ends as if it had never stopped.

    The result depends on ``options.seed`` and the number of threads and processes only, and the caller's random states
    are left alone.
    """
    check_lengths(model, [*features, *held_out])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, isolated_rng(options.seed), quiet_transformers(), _quiet_ddp():
        world = processes()
        _check_parts(options, world.num_processes)
        batches = plan_batches(features, options.batch_size, options.epochs, options.seed)
        groups = [{**group, "initial_lr": group["lr"]} for group in groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        factor = rate_by_step(options.schedule, options.warmup, len(batches))
        state = TrainingState(optimizer)
        if saved is not None and (saved.exists() or options.save_steps):
            rows = rows_digest(features, held_out)
            saved.identify(processes=world.num_processes, rows=rows, model=model_digest(model))
            if saved.exists():
                saved.restore(state)
        between = _BetweenSteps(
            state,
            options,
            steps=len(batches),
            epoch=steps_per_epoch(features, options.batch_size),
            evaluate=lambda: held_out_loss(model, held_out, collate, items, options.batch_size) if held_out else None,
            saved=saved if world.is_main_process else None,
            progress=progress if world.is_main_process else None,
        )
        if not between.is_over():
            bf16 = use_bf16(options.precision, default_device(), model)
            trainer = _Trainer(
                model=model,
                loss=loss,
                args=_arguments(folder, options, bf16),
                train_dataset=MicroBatches(
                    features,
                    batches,
                    collate,
                    items,
                    seed=options.seed,
                    accumulate=options.accumulate,
                    process=world.process_index,
                    processes=world.num_processes,
                    first_step=state.step,
                ),
                optimizers=(
                    optimizer,
                    LambdaLR(optimizer, factor, last_epoch=state.step - 1),
                ),
                callbacks=[between],
            )
            trainer.remove_callback(PrinterCallback)
            with (
                activations_remade(model),
                dropout_of(model, options.dropout),
                trainable_attention(default_device(), bf16),
                _checkpointing(model, options.checkpointing),
            ):
                trainer.train()
        state.take_best()
    return Trained(time.perf_counter() - start, state.best_step or state.step)


def _check_parts(options: TuneOptions, number: int) -> None:
    if options.batch_size < number * options.accumulate:
        raise SchemeError(
            f"a batch of {options.batch_size} rows cannot be shared by {number} processes in {options.accumulate} "
            "parts each; raise the batch size"
        )


@contextmanager
def _checkpointing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Let the model compute activations again in the backward pass, where that is wanted."""
    if not wanted:
        yield
        return
    # Newer versions of transformers say "activation" where older ones said "gradient".
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    yield
    getattr(model, f"{kind}_checkpointing_disable")()


@contextmanager
def _quiet_ddp() -> Iterator[None]:
    """Hold back torch's advice on a setting that keeps the codes from being sent around."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        yield


def _arguments(folder: str, options: TuneOptions, bf16: bool) -> TrainingArguments:
    """What Trainer is told: one long epoch of micro-batches, and nothing written or logged."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        gradient_accumulation_steps=options.accumulate,
        bf16=bf16,
        use_cpu=default_device().type == "cpu",
        seed=options.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        average_tokens_across_devices=False,
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a second GPU takes a second process, not a copy of the model
    return arguments


class _Trainer(Trainer):
    """Takes micro-batches as they come and gives each the weight and the random numbers that it brings."""

    def __init__(self, *args: Any, loss: Loss, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._loss = loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=None)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        set_seed(inputs.pop("seed"))
        weight = inputs.pop("weight") * self.args.world_size  # gradients are averaged over the processes
        model.train()
        with self.compute_loss_context_manager():
            loss = self._loss(model, {name: value.to(self.args.device) for name, value in inputs.items()}) * weight
        self.accelerator.backward(loss)
        return loss.detach()


class _BetweenSteps(TrainerCallback):
    """After a step: an evaluation where one is due, the decision to stop, a save where one is due, a report."""

    def __init__(
        self,
        state: TrainingState,
        options: TuneOptions,
        *,
        steps: int,
        epoch: int,
        evaluate: Callable[[], float | None],
        saved: SavedRun | None,
        progress: Progress | None,
    ) -> None:
        self._state, self._options, self._steps, self._epoch = state, options, steps, epoch
        self._evaluate, self._saved, self._progress = evaluate, saved, progress

    def is_over(self) -> bool:
        """Whether all steps are done, or the held-out loss has not fallen for too long."""
        patience = self._options.patience
        return self._state.step >= self._steps or (patience is not None and self._state.misses >= patience)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._state.step += 1
        step = self._state.step
        if (step % self._epoch == 0 or step == self._steps) and (loss := self._evaluate()) is not None:
            self._state.judge(loss)
        control.should_training_stop |= self.is_over()
        if self._saved is not None and self._options.save_steps and step % self._options.save_steps == 0:
            self._saved.save(self._state)
        if self._progress is not None:
            self._progress(step, self._steps, "steps")
