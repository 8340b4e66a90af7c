"""Low-rank factors beside the quantized linears, and the head: what others train on a frozen low-bit model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lowbit.adapter import FACTORS, AdapterInfo, model_fingerprint, write_adapter
from lowbit.arch import find_module, relative_name
from lowbit.checkpoint import FloatWeights, checkpoint_folder, hub_id, open_float_weights
from lowbit.errors import AdapterError
from lowbit.loop import isolated_rng
from lowbit.nn import QuantLinear
from lowbit.tuning.methods.base import Batch, Method, Prepared, budget_left
from lowbit.tuning.prepare import cache_weights, linear_weights, prepare, quant_linears

_LEARNING_RATE = 1.5e-3
_HEAD_LEARNING_RATE = 5e-4
# A float model of the same shapes leaves another error than the recorded one; rounding moves it far less than this.
_TOLERANCE = 0.01


class Lora(Method):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on every quantized linear of the blocks, scaled by 1: QLoRA's setting.

    The factors have rank ``options.rank``, or the largest one that fits ``options.budget``.
    """

    from_backbone = True
    takes = frozenset(("budget", "rank", "cache", "head_learning_rate"))

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Add the factors, then freeze everything but them and the head."""
        from lowbit.hf.peft import add_factors, factors

        self._fingerprint = model_fingerprint(self.model)
        model, options, linears = self.model, self.options, quant_linears(self.model)
        head = prepare(model, outliers=False, norms=False, biases=False, scales=False)["head"]
        heads = {path for name in head if (path := find_module(model, name.rpartition(".")[0]))}
        with isolated_rng(options.seed):
            add_factors(model, self._rank(linears), linears, heads)
        self._start(linears)
        cache_weights(model, options.cache)
        trained = [factor for pair in factors(model).values() for factor in pair]
        known = {id(factor) for factor in trained}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        return Prepared(
            model,
            {"lora": sum(p.numel() for p in trained), "head": sum(p.numel() for p in rest)},
            [
                {"params": trained, "lr": options.learning_rate or _LEARNING_RATE},
                {"params": rest, "lr": options.head_learning_rate or _HEAD_LEARNING_RATE},
            ],
        )

    def _rank(self, linears: Mapping[str, QuantLinear]) -> int:
        """The rank of all factors; one that a linear is too small for raises AdapterError."""
        each = sum(sum(module.shape) for module in linears.values())
        left = budget_left(self.options, linear_weights(self.model), {"lora": each})
        rank = self.options.rank if left is None else 1 + left // each
        for path, module in linears.items():
            if rank > min(module.shape):
                raise AdapterError(f"{path} is {list(module.shape)}, which has no rank {rank}; give a lower one")
        return rank

    def _start(self, linears: Mapping[str, QuantLinear]) -> None:
        """Factors start with a product of 0."""

    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write an adapter that peft can read, too."""
        from lowbit.hf.peft import factor_config, factor_tensors

        cache_weights(self.model, "none")
        backbone = hub_id(self.folder)
        info = AdapterInfo(fingerprint=self._fingerprint, backbone=backbone, format=FACTORS, **fields)
        config = {"adapter_config.json": factor_config(self.model, backbone)}
        write_adapter(output, info, factor_tensors(self.model), config)


class LoftQ(Lora):
    """The same from factors that make up for what quantizing lost: LoftQ (Li et al. 2023, arXiv 2310.08659).

    One step of it: the backbone is shared by all tasks and stays as it is.
    """

    takes = Lora.takes | {"float_model"}

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Add the factors, set them by the float model, then freeze everything but them and the head."""
        if self.options.float_model is None:
            raise AdapterError("loftq needs the float model that the backbone was made of; give it with --float-model")
        return super().prepare(first_batch)

    @torch.no_grad()
    def _start(self, linears: Mapping[str, QuantLinear]) -> None:
        """Factors start as the best approximation of ``W - Q(W)`` of their rank, shared evenly between the two."""
        from lowbit.hf.peft import factors

        assert self.options.float_model is not None
        names = {path: relative_name(self.model, path) for path in linears}
        shapes = {names[path]: module.shape for path, module in linears.items()}
        pairs = {path.removesuffix(".base_layer"): pair for path, pair in factors(self.model).items()}
        with open_float_weights(checkpoint_folder(self.options.float_model), self.folder, shapes) as floats:
            for path, module in linears.items():
                down, up = pairs[path]
                left, values, right = torch.linalg.svd(self._lost(floats, names[path], module), full_matrices=False)
                roots = values[: down.shape[0]].sqrt()
                up.copy_(left[:, : len(roots)] * roots)
                down.copy_(roots[:, None] * right[: len(roots)])

    def _lost(self, floats: FloatWeights, name: str, module: QuantLinear) -> torch.Tensor:
        """``W - Q(W)`` float32 [out, in]; an error other than the recorded one raises AdapterError."""
        weight = floats.weight(name).float()
        lost = weight - module.weight
        error, recorded = float(lost.norm() / weight.norm()), self.model.config.quantization_config.errors.get(name)
        if recorded is not None and abs(error - recorded) > _TOLERANCE:
            raise AdapterError(
                f"{name}: quantizing {self.options.float_model} has an error of {error:.3f}, the backbone of "
                f"{recorded:.3f}; give --float-model the model that it was made of"
            )
        return lost
