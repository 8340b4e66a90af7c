"""Stage 1: a float model, or a checkpoint streamed tensor by tensor, becomes a backbone. No data is used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.arch import drop_pooler, find_module, float_weight, swap_fake_modules, swap_modules, weight_shape
from lowbit.budget import choose_bits, output_changes, spread_outliers
from lowbit.calibration import Inputs, Text, blocks, input_steps, second_moments
from lowbit.checkpoint import (
    Size,
    SourceCheckpoint,
    TensorEntry,
    atomic_directory,
    checkpoint_folder,
    load_tokenizer,
    measure,
    meta_model,
    open_source,
    quiet_transformers,
    read_config,
    refuse_existing,
    write_description,
    write_weights,
)
from lowbit.errors import CheckpointError, SchemeError, naming
from lowbit.outliers import count_outliers
from lowbit.plan import Plan, PlanEntry, make_plan
from lowbit.qtensor import QuantizedTensor, check_finite, find_outliers, quantize_with_error, tensor_specs
from lowbit.recipe import Recipe

Progress = Callable[[int, int, str], None]
Outcome = tuple[QuantizedTensor, float]


@dataclass(frozen=True)
class Quantized:
    """Result of :func:`quantize_checkpoint`: where it is, what was done, and its size on disk."""

    path: Path
    plan: Plan
    size: Size


def plan_checkpoint(model: str | Path, recipe: Recipe, progress: Progress | None = None) -> Plan:
    """The plan for a model given as a folder or hub id.

    Of the weights only headers and tied tables are read, unless the recipe has a budget for the whole model: outliers
    spread over it are counted in a pass over the weights, and for ``target_bits`` the float model is loaded and run.
    """
    folder = checkpoint_folder(model)
    skeleton = _skeleton(folder)
    with open_source(folder, skeleton) as source:
        return _plan_source(folder, skeleton, source, recipe, progress)


def plan_model(model: PreTrainedModel, recipe: Recipe, progress: Progress | None = None) -> Plan:
    """The plan for a loaded float model; equal to that of its checkpoint."""
    return _settle(make_plan(model, recipe), partial(_model_weight, model), lambda: model, progress)


def quantize_checkpoint(
    model: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    texts: Sequence[Text] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a checkpoint into a new backbone directory, tensor by tensor.

    ``model`` is a folder or hub id; ``seed`` serves random outliers and generated inputs; ``progress(done, total,
    name)`` is called before each tensor. For a strategy that needs a Hessian, and for static activations, the float
    model is loaded and run on ``texts``, or on generated ones. Typed errors name the file or module; nothing half
    written is left behind.
    """
    refuse_existing(output)
    folder = checkpoint_folder(model)
    skeleton = _skeleton(folder)
    with open_source(folder, skeleton) as source, atomic_directory(output) as unfinished:
        plan = _plan_source(folder, skeleton, source, recipe, progress)
        done: Mapping[str, Outcome] = {}
        if _calibrates(plan, texts):
            done = _calibrated(_load(folder, skeleton), plan, folder, Inputs(texts), seed, progress)
        stream = _Stream(skeleton, plan, source, seed, done)
        config = skeleton.config
        config.dtype = source.dtype()
        write_weights(unfinished, stream.entries, stream.tensors(progress))
        plan = replace(plan, errors=stream.errors)
        write_description(unfinished, plan, config, folder)
    return Quantized(Path(output), plan, measure(output))


def quantize_model(
    model: PreTrainedModel, recipe: Recipe, *, texts: Sequence[Text] | None = None, pairs: float = 0.0, seed: int = 0
) -> Plan:
    """Quantize a loaded float model in place and return the plan; the result equals the streaming path's.

    A strategy that needs a Hessian, and static activations, take the tokenizer from where the model was loaded from.
    Of the inputs that are generated for them a share are ``pairs`` of texts.
    """
    plan, tensors = _quantize_weights(model, recipe, Inputs(texts, pairs), seed)
    swap_modules(model, tensors)
    return plan


def fake_quantize_model(
    model: PreTrainedModel, recipe: Recipe, *, texts: Sequence[Text] | None = None, pairs: float = 0.0, seed: int = 0
) -> Plan:
    """Like :func:`quantize_model`, but the linears can be trained further; :func:`lowbit.arch.pack_model` ends that.

    A grid that cannot be trained raises SchemeError with the name of the module.
    """
    plan, tensors = _quantize_weights(model, recipe, Inputs(texts, pairs), seed)
    swap_fake_modules(model, tensors)
    return plan


def _quantize_weights(
    model: PreTrainedModel, recipe: Recipe, inputs: Inputs, seed: int
) -> tuple[Plan, dict[str, QuantizedTensor]]:
    """The plan for a loaded float model, and its quantized weights by path."""
    plan = plan_model(model, recipe)
    done: Mapping[str, Outcome] = {}
    if _calibrates(plan, inputs.texts):
        done = _calibrated(model, plan, checkpoint_folder(model.name_or_path), inputs, seed, None)
    tensors, errors = {}, {}
    for entry in plan.quantized:
        path = _path(model, entry)
        tensors[path], errors[entry.name] = done.get(path) or _quantize(entry, _model_weight(model, entry), seed)
    for name, parameter in model.named_parameters():
        _check(name, parameter.data)
    return replace(plan, errors=errors), tensors


class _Stream:
    """The tensors of a backbone, made one after another from a source checkpoint."""

    def __init__(
        self, model: PreTrainedModel, plan: Plan, source: SourceCheckpoint, seed: int, done: Mapping[str, Outcome]
    ) -> None:
        self._model, self._source, self._seed, self._done = model, source, seed, done
        self._modules = {_path(model, entry): entry for entry in plan.quantized}
        self.errors: dict[str, float] = {}
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
                entry = self._modules[path]
                outcome = self._done.get(path) or _quantize(entry, self._weight(path), self._seed)
                tensor, self.errors[entry.name] = outcome
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


def _plan_source(
    folder: Path, skeleton: PreTrainedModel, source: SourceCheckpoint, recipe: Recipe, progress: Progress | None
) -> Plan:
    """The settled plan of an open checkpoint; the skeleton takes its dtype."""
    skeleton.to(source.dtype())

    def weight(entry: PlanEntry) -> torch.Tensor:
        path = _path(skeleton, entry)
        return float_weight(skeleton.get_submodule(path), source.tensor(f"{path}.weight"))

    return _settle(make_plan(skeleton, recipe), weight, partial(_load, folder, skeleton), progress)


def _load(folder: Path, skeleton: PreTrainedModel) -> PreTrainedModel:
    """The float model that a skeleton stands for, in the same dtype."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():  # a pooler that is lacking is drawn
        model = type(skeleton).from_pretrained(folder, dtype=skeleton.dtype, local_files_only=True)
    drop_pooler(model, skeleton.state_dict())
    return model


def _settle(
    plan: Plan,
    weight: Callable[[PlanEntry], torch.Tensor],
    model: Callable[[], PreTrainedModel],
    progress: Progress | None,
) -> Plan:
    """The plan with what its recipe leaves to the whole model: widths first, then outliers at these widths."""
    if plan.recipe.target_bits is not None:
        plan = choose_bits(plan, output_changes(model(), plan, progress))
    return spread_outliers(plan, weight, progress)


def _calibrates(plan: Plan, texts: Sequence[Text] | None) -> bool:
    """Whether inputs are needed; texts that nothing would read raise SchemeError."""
    needed = any(entry.needs_hessian or entry.is_static for entry in plan.quantized)
    if texts is not None and not needed:
        raise SchemeError(
            "no strategy of the recipe reads calibration text; choose `gptq` or static activations (a8s), "
            "or leave the text out"
        )
    return needed


def _calibrated(
    model: PreTrainedModel,
    plan: Plan,
    folder: Path,
    inputs: Inputs,
    seed: int,
    progress: Progress | None,
) -> dict[str, Outcome]:
    """The modules whose strategy needs a Hessian, or whose inputs a step, by path, quantized block by block.

    Each block sees what the blocks before it make of the inputs once they are quantized. The model is as it was
    afterwards.
    """
    entries = {_path(model, entry): entry for entry in plan.quantized if entry.needs_hessian or entry.is_static}
    given = inputs.batches(model, load_tokenizer(folder), seed)
    done: dict[str, Outcome] = {}
    floats: dict[str, torch.Tensor] = {}
    try:
        for block in blocks(entries):
            if progress is not None:
                progress(len(done), len(entries), block[0])
            moments = second_moments(model, [path for path in block if entries[path].needs_hessian], given)
            steps = input_steps(model, [path for path in block if entries[path].is_static], given)
            for path in block:
                module = model.get_submodule(path)
                floats[path] = module.weight.data
                weight = float_weight(module, floats[path])
                done[path] = _quantize(entries[path], weight, seed, moments.pop(path, None), steps.get(path))
                module.weight.data = float_weight(module, done[path][0].dequantize(weight.dtype))
    finally:
        for path, weight in floats.items():
            model.get_submodule(path).weight.data = weight
    return done


def _path(model: PreTrainedModel, entry: PlanEntry) -> str:
    path = find_module(model, entry.name)
    assert path is not None
    return path


def _model_weight(model: PreTrainedModel, entry: PlanEntry) -> torch.Tensor:
    module = model.get_submodule(_path(model, entry))
    return float_weight(module, module.weight.data)


def _quantize(
    entry: PlanEntry,
    weight: torch.Tensor,
    seed: int,
    hessian: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
) -> Outcome:
    """Quantize one module's weight [out, in]; also its relative error, to four digits."""
    assert entry.scheme is not None
    digest = hashlib.sha256(f"{seed}:{entry.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    with naming(entry.name):
        tensor, error = quantize_with_error(
            weight, entry.scheme, hessian=hessian, input_scale=input_scale, generator=generator
        )
    return tensor, float(f"{error:.4g}")


def _check(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        with naming(name):
            check_finite(tensor)
