"""The training loop: transformers' Trainer with two learning rates and nothing written along the way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from lowbit.loop import Progress, check_lengths, default_device, isolated_rng, quiet_transformers, use_bf16
from lowbit.tuning.options import TuneOptions

_WARMUP = 0.06


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Sequence[dict[str, Any]],
    groups: list[dict[str, Any]],
    options: TuneOptions,
    progress: Progress | None = None,
) -> float:
    """Train parameter ``groups`` (as AdamW takes them) in place; returns seconds.

    Linear decay after a short warm-up, gradient norm clipped at 1, batches of similar length. The result depends on
    ``options.seed`` and the number of threads only, and the caller's random states are left alone.
    """
    check_lengths(model, features)
    device = default_device()
    with tempfile.TemporaryDirectory() as folder, isolated_rng(options.seed), quiet_transformers():
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            train_sampling_strategy="group_by_length",
            warmup_steps=_WARMUP,
            bf16=use_bf16(options.precision, device),
            use_cpu=device.type == "cpu",
            seed=options.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            ddp_broadcast_buffers=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=features,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None),
            callbacks=[_Report(progress)] if progress is not None else [],
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


class _Report(TrainerCallback):
    """Hands every optimizer step to a progress function."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps, "steps")
