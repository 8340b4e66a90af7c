"""Quantization-aware training: every weight and every step size, through the rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowbit.arch import pack_model
from lowbit.nn import FakeQuantLinear
from lowbit.quantize import fake_quantize_model
from lowbit.tuning.methods.base import Batch, Method, Prepared
from lowbit.tuning.methods.whole import LEARNING_RATE, write_quantized


class QAT(Method):
    """Fine-tuning of a float model whose block linears compute with quantized weights (LSQ, arXiv 1902.08153).

    Latent weights, step sizes, and all that the recipe leaves in float are trained; word embeddings that it quantizes
    are not. The result is the quantized model.
    """

    from_backbone = False
    takes = frozenset()

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Quantize by the recipe, and train through the rounding at one rate."""
        self._plan = fake_quantize_model(self.model, self.options.recipe, seed=self.options.seed)
        fakes = [module for module in self.model.modules() if isinstance(module, FakeQuantLinear)]
        rate = self.options.learning_rate or LEARNING_RATE
        steps = [group for module in fakes for group in module.step_groups(rate)]
        scales = {id(step): step.numel() for group in steps for step in group["params"]}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in scales]
        weights = sum(module.latent.numel() for module in fakes)
        trained = {
            "weights": weights,
            "scales": sum(scales.values()),
            "rest": sum(parameter.numel() for parameter in rest) - weights,
        }
        return Prepared(self.model, trained, [{"params": rest, "lr": rate}, *steps])

    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write the quantized model."""
        pack_model(self.model.cpu())
        write_quantized(self.model, self._plan, self.folder, output, fields)
