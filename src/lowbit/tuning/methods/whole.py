"""Baselines that train every weight: full fine-tuning, and quantization after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.checkpoint import atomic_directory, copy_side_files, quiet_transformers
from lowbit.hf import LowbitConfig, attach, save
from lowbit.plan import Plan
from lowbit.quantize import quantize_model
from lowbit.tuning.methods.base import Batch, Method, Prepared

LEARNING_RATE = 5e-5


class Full(Method):
    """Ordinary fine-tuning of a float model; the result is a float model."""

    from_backbone = False
    takes = frozenset()

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Train everything at one rate."""
        parameters = list(self.model.parameters())
        group = {"params": parameters, "lr": self.options.learning_rate or LEARNING_RATE}
        return Prepared(self.model, {"all": sum(p.numel() for p in parameters)}, [group])

    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write the float model."""
        self.model.config.lowbit_task = dict(fields)
        with atomic_directory(output) as partial, quiet_transformers():
            self.model.cpu().save_pretrained(partial)
            copy_side_files(self.folder, partial)


class PostTraining(Full):
    """Full fine-tuning, and the result quantized by the recipe."""

    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write the quantized model."""
        plan = quantize_model(self.model.cpu(), self.options.recipe, seed=self.options.seed)
        write_quantized(self.model, plan, self.folder, output, fields)


def write_quantized(model: PreTrainedModel, plan: Plan, source: Path, output: Path, fields: Mapping[str, Any]) -> None:
    """Write a model that was quantized by a plan, with what it is for, and the tokenizer of ``source``."""
    model.config.lowbit_task = dict(fields)
    attach(model, LowbitConfig.from_plan(plan))
    save(model, output, source=source)
