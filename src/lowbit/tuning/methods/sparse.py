"""Methods whose result is a task adapter: few values of a frozen backbone, and the head."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from transformers import PreTrainedModel

from lowbit.adapter import AdapterInfo, adapter_target, model_fingerprint, write_adapter
from lowbit.arch import find_module, relative_name
from lowbit.checkpoint import hub_id
from lowbit.errors import AdapterError
from lowbit.nn import QuantLinear, rows_of
from lowbit.tuning.methods.base import Batch, Method, Prepared, budget_left
from lowbit.tuning.positions import Positions, choose_positions, dense_gradients
from lowbit.tuning.prepare import cache_weights, finish, linear_weights, prepare, quant_linears, train_positions

# Outliers need a far larger step than whole matrices: 1e-3 moves them too little in a few epochs.
_LEARNING_RATE = 3e-3
_FURTHER_LEARNING_RATE = 1e-2  # at 2 bits, where there is more to correct, and for weights that are no outliers
_REST_LEARNING_RATE = 5e-4
_BIAS_LEARNING_RATE = 3e-3
_FEW_BITS = 4  # with more, grids are fine enough, and step sizes of int8 layouts could not be switched
# Rates of step sizes go by their mean, as it differs by bits and by model: in a matrix beside outliers, and alone.
_ALONG = 1.5e-3
_ALONE = 1.5e-2


class Outliers(Method):
    """PreQuant's stage 2: outlier values and head, with norms, biases and step sizes along by choice."""

    from_backbone = True
    takes = frozenset(
        ("norms", "biases", "scales", "budget", "positions", "initial", "rate_by_step", "cache", "head_learning_rate")
    )
    main: ClassVar[str] = "outliers"  # the group that the learning rate is for

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Choose the positions, then freeze everything else."""
        self._fingerprint = model_fingerprint(self.model)
        self._positions: Positions = {}
        if self.options.scales is None:
            self.options = dataclasses.replace(self.options, scales=_most_bits(self.model) <= _FEW_BITS)
        model, options = self.model, self.options
        needs_gradients = self.main == "outliers" and options.positions in ("gradient", "mix")
        gradients = dense_gradients(model, first_batch()) if needs_gradients else {}
        self._names = self._freeze()
        if not self._names[self.main]:
            raise AdapterError(f"the model has no {self.main} to train; choose another method")
        trained = {group: sum(adapter_target(model, n).numel() for n in found) for group, found in self._names.items()}
        if self.main == "outliers":
            self._positions = self._choose(trained, gradients)
            if self._positions:
                trained["outliers"] = sum(found.numel() for found in self._positions.values())
            train_positions(model, self._positions, options.initial)
        else:
            budget_left(options, linear_weights(model), trained)
        cache_weights(model, options.cache)
        return Prepared(model, trained, self._groups())

    def _choose(self, trained: Mapping[str, int], gradients: Mapping[str, torch.Tensor]) -> Positions:
        """The positions by module; none where they are the backbone's own."""
        options = self.options
        linears = {n: module for n, module in quant_linears(self.model).items() if module.outlier_value is not None}
        left = budget_left(options, linear_weights(self.model), {**trained, "outliers": 0})
        if options.positions == "backbone" and (left is None or left >= trained["outliers"]):
            return {}
        own = left is None or options.positions == "backbone"
        counts = _shared({path: _size(module, own) for path, module in linears.items()}, left)
        return choose_positions(linears, options.positions, counts, options.seed, gradients)

    def _freeze(self) -> dict[str, list[str]]:
        options = self.options
        return prepare(self.model, norms=options.norms, biases=options.biases, scales=bool(options.scales))

    def _groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: what the method is about, one for each rate, and the rest."""
        model, options = self.model, self.options
        rate = options.learning_rate or self._default_rate()
        main = [adapter_target(model, name) for name in self._names[self.main]]
        apart = (self.main, "scales")
        rest = [adapter_target(model, n) for group, found in self._names.items() if group not in apart for n in found]
        groups = [{"params": main, "lr": rate}]
        if options.rate_by_step:
            paths = [find_module(model, name.rpartition(".")[0]) or "" for name in self._names[self.main]]
            steps = [_mean_step(cast(torch.Tensor, model.get_submodule(path).scale)) for path in paths]
            mean = sum(steps) / len(steps)
            groups = [{"params": [p], "lr": rate * step / mean} for p, step in zip(main, steps, strict=True)]
        if self.main != "scales" and self._names["scales"]:
            along = [adapter_target(model, name) for name in self._names["scales"]]
            groups += [{"params": [steps], "lr": _ALONG * _mean_step(steps)} for steps in along]
        return [*groups, {"params": rest, "lr": options.head_learning_rate or _REST_LEARNING_RATE}]

    def _default_rate(self) -> float:
        further = _most_bits(self.model) == 2 or self.options.positions == "random"
        return _FURTHER_LEARNING_RATE if further else _LEARNING_RATE

    def write(self, output: Path, fields: Mapping[str, Any]) -> None:
        """Write the adapter; positions other than the backbone's go with the values."""
        cache_weights(self.model, "none")
        finish(self.model)
        tensors = {n: adapter_target(self.model, n).detach() for found in self._names.values() for n in found}
        for path, positions in self._positions.items():
            module = self.model.get_submodule(path)
            assert isinstance(module, QuantLinear)
            name = relative_name(self.model, path)
            tensors |= {f"{name}.{part}": rows for part, rows in rows_of(module, positions).items()}
        info = AdapterInfo(fingerprint=self._fingerprint, backbone=hub_id(self.folder), **fields)
        write_adapter(output, info, tensors)


class Random(Outliers):
    """The same with random positions, as many as the backbone has outliers or the budget allows."""

    takes = Outliers.takes - {"positions"}

    def prepare(self, first_batch: Callable[[], Batch]) -> Prepared:
        """Draw the positions with the seed, then freeze everything else."""
        self.options = dataclasses.replace(self.options, positions="random")
        return super().prepare(first_batch)


class Scales(Outliers):
    """Step sizes and head only: PEQA (Kim et al. 2023, arXiv 2305.14152)."""

    takes = frozenset(("budget", "rate_by_step", "cache", "head_learning_rate"))
    main = "scales"

    def _freeze(self) -> dict[str, list[str]]:
        return prepare(self.model, outliers=False, norms=False, biases=False, scales=True)

    def _default_rate(self) -> float:
        return _ALONE * statistics.mean(_mean_step(adapter_target(self.model, name)) for name in self._names["scales"])


class Biases(Outliers):
    """Biases of the block linears, and the head: BitFit (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    takes = frozenset(("budget", "cache", "head_learning_rate"))
    main = "biases"

    def _freeze(self) -> dict[str, list[str]]:
        return prepare(self.model, outliers=False, norms=False, scales=False)

    def _default_rate(self) -> float:
        return _BIAS_LEARNING_RATE


def _most_bits(model: PreTrainedModel) -> int:
    return max((module.scheme.bits for module in quant_linears(model).values()), default=0)


def _mean_step(scale: torch.Tensor) -> float:
    return float(scale.detach().float().mean())


def _size(module: QuantLinear, own: bool) -> int:
    """How many outliers a module has of its ``own``, or how many weights."""
    return module.tensor.outlier_count if own else module.shape[0] * module.shape[1]


def _shared(sizes: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """A budget shared in proportion to sizes; without one the sizes themselves."""
    whole = sum(sizes.values())
    return {path: size if limit is None else limit * size // whole for path, size in sizes.items()}
