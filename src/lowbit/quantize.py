"""Stage 1: a float model, or a checkpoint streamed tensor by tensor, becomes a backbone. No data is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.arch import find_module, float_weight, swap_modules, weight_shape
from lowbit.checkpoint import (
    Size,
    SourceCheckpoint,
    TensorEntry,
    atomic_directory,
    checkpoint_folder,
    measure,
    meta_model,
    open_source,
    read_config,
    refuse_existing,
    write_backbone,
)
from lowbit.errors import CheckpointError, LowbitError
from lowbit.outliers import count_outliers
from lowbit.plan import Plan, PlanEntry, make_plan
from lowbit.qtensor import QuantizedTensor, check_finite, find_outliers, quantize_tensor, tensor_specs
from lowbit.recipe import Recipe

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Quantized:
    """Result of :func:`quantize_checkpoint`: where it is, what was done, and its size on disk."""

    path: Path
    plan: Plan
    size: Size


def plan_checkpoint(model: str | Path, recipe: Recipe) -> Plan:
    """The plan for a model given as a folder or hub id; of the weights only headers and tied tables are read."""
    folder = checkpoint_folder(model)
    skeleton = _skeleton(folder)
    with open_source(folder, skeleton) as source:
        return make_plan(skeleton.to(source.dtype()), recipe)


def quantize_checkpoint(
    model: str | Path, recipe: Recipe, output: str | Path, *, seed: int = 0, progress: Progress | None = None
) -> Quantized:
    """Quantize a checkpoint into a new backbone directory, tensor by tensor.

    ``model`` is a folder or hub id; ``seed`` serves random outliers only; ``progress(done, total, name)`` is
    called before each tensor. Typed errors name the file or module; nothing half written is left behind.
    """
    refuse_existing(output)
    folder = checkpoint_folder(model)
    skeleton = _skeleton(folder)
    with open_source(folder, skeleton) as source, atomic_directory(output) as partial:
        skeleton.to(source.dtype())
        plan = make_plan(skeleton, recipe)
        stream = _Stream(skeleton, plan, source, seed)
        tensors = stream.tensors(progress)
        config = skeleton.config
        config.dtype = source.dtype()
        write_backbone(partial, plan, config, stream.entries, tensors, folder)
    return Quantized(Path(output), plan, measure(output))


def quantize_model(model: PreTrainedModel, recipe: Recipe, *, seed: int = 0) -> Plan:
    """Quantize a loaded float model in place and return the plan; the result equals the streaming path's."""
    plan = make_plan(model, recipe)
    tensors = {}
    for entry in plan.quantized:
        path = find_module(model, entry.name)
        assert path is not None
        module = model.get_submodule(path)
        tensors[path] = _quantize(entry, float_weight(module, module.weight.data), seed)
    for name, parameter in model.named_parameters():
        _check(name, parameter.data)
    swap_modules(model, tensors)
    return plan


class _Stream:
    """The tensors of a backbone, made one after another from a source checkpoint."""

    def __init__(self, model: PreTrainedModel, plan: Plan, source: SourceCheckpoint, seed: int) -> None:
        self._model, self._source, self._seed = model, source, seed
        self._modules: dict[str, PlanEntry] = {}
        for entry in plan.quantized:
            path = find_module(model, entry.name)
            assert path is not None
            self._modules[path] = entry
        self.entries: dict[str, TensorEntry] = {}
        for name in source.names:
            path = name.removesuffix(".weight")
            if path in self._modules and name.endswith(".weight"):
                self._add_payload(path, self._modules[path])
            else:
                tensor = source.tensor(name)
                self.entries[name] = TensorEntry(tensor.dtype, tuple(tensor.shape))

    def tensors(self, progress: Progress | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the backbone, in the order of the model."""
        total = len(self._source.names)
        for done, name in enumerate(self._source.names):
            if progress is not None:
                progress(done, total, name)
            path = name.removesuffix(".weight")
            if path in self._modules and name.endswith(".weight"):
                tensor = _quantize(self._modules[path], self._weight(path), self._seed)
                for part, value in tensor.to_tensors().items():
                    yield f"{path}.{part}", value
            else:
                value = self._source.tensor(name)
                _check(name, value)
                yield name, value
        if progress is not None:
            progress(total, total, "")

    def _weight(self, path: str) -> torch.Tensor:
        return float_weight(self._model.get_submodule(path), self._source.tensor(f"{path}.weight"))

    def _add_payload(self, path: str, entry: PlanEntry) -> None:
        """Announce the tensors of one quantized module; a sigma threshold is counted on the weights first."""
        scheme, shape = entry.scheme, weight_shape(self._model.get_submodule(path))
        assert scheme is not None
        outliers = None
        if scheme.outliers is not None and count_outliers(scheme.outliers, 1) is None:
            positions = find_outliers(self._weight(path).float().contiguous(), scheme)
            assert positions is not None
            outliers = positions.numel()
        for part, (dtype, size) in tensor_specs(scheme, shape, outliers).items():
            self.entries[f"{path}.{part}"] = TensorEntry(dtype, size)


def _skeleton(folder: Path) -> PreTrainedModel:
    """The model of a float checkpoint on the meta device."""
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"{folder} is quantized already; start from the float model")
    return meta_model(config)


def _quantize(entry: PlanEntry, weight: torch.Tensor, seed: int) -> QuantizedTensor:
    """Quantize one module's weight [out, in]; errors carry the module's name."""
    assert entry.scheme is not None
    digest = hashlib.sha256(f"{seed}:{entry.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    try:
        return quantize_tensor(weight, entry.scheme, generator=generator)
    except LowbitError as error:
        raise type(error)(f"{entry.name}: {error}") from error


def _check(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        try:
            check_finite(tensor)
        except LowbitError as error:
            raise type(error)(f"{name}: {error}") from error
