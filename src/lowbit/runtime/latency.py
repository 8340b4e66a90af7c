"""The latency mode on torch: every quantized linear becomes an int8 one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.adapter import adapter_target, model_fingerprint, remove_adapter
from lowbit.arch import find_module
from lowbit.errors import UnsupportedModelError
from lowbit.kernels import KERNELS, best_kernel, keeps_codes, kernels_absence
from lowbit.nn import Int8Linear, QuantEmbedding, QuantLinear, QuantModule, TiedQuantLinear
from lowbit.runtime.fuse import fuse_activations
from lowbit.runtime.layers import fuse_layers
from lowbit.runtime.report import Choice, RuntimeReport
from lowbit.runtime.switch import TaskState, make_task, switch


@torch.no_grad()
def prepare_torch(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the quantized linears of a loaded backbone by int8 ones, in place; an adapter on it is laid over them.

    Where the adapter has step sizes that the layout cannot change afterwards, backbone and adapter are folded as one,
    and :func:`switch` refuses the result. A model with low-rank factors on it, or with static activations, raises
    :class:`UnsupportedModelError`.
    """
    if getattr(model, "peft_config", None):
        raise UnsupportedModelError("low-rank factors cannot be folded into int8; use the model unprepared")
    refuse_static(model)
    kernel, why = best_kernel()
    active = getattr(model, "lowbit_adapter", None)
    as_one = active is not None and _fixes_steps(model, active.replaced, KERNELS[kernel].limits[-1])
    changed = {} if active is None else {name: adapter_target(model, name).detach() for name in active.replaced}
    changed = {name: tensor.clone() for name, tensor in changed.items()}
    fingerprint = model_fingerprint(model) if active is None else active.fingerprint
    if not as_one:
        remove_adapter(model)
    swapped = _swap_linears(model, kernel)
    model.requires_grad_(False).eval()
    fused, whole = fuse_activations(model), fuse_layers(model)
    model.lowbit_runtime = _report(model, swapped, fused, whole, kernel, why)
    model.save_pretrained = refuse_saving
    if as_one:
        return model
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Int8Linear)}
    model.lowbit_tasks = TaskState(fingerprint, layers)
    if changed:
        switch(model, make_task(model, changed, None))
    return model


def _fixes_steps(model: PreTrainedModel, names: Iterable[str], limit: int) -> bool:
    """Whether an adapter has step sizes of a weight whose codes are not kept."""
    parts = (name.rpartition(".") for name in names)
    modules = [model.get_submodule(find_module(model, module) or "") for module, _, part in parts if part == "scale"]
    return any(isinstance(module, QuantModule) and not keeps_codes(module.scheme, limit) for module in modules)


def _swap_linears(model: PreTrainedModel, kernel: str) -> dict[str, list[Int8Linear]]:
    """Put int8 linears in place, one after another so that little is held twice; gives them by kind."""
    swapped: dict[str, list[Int8Linear]] = {"linear": [], "tied output projection": []}
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            kind, tensor = "linear", module.tensor
        elif isinstance(module, TiedQuantLinear):
            kind, tensor = "tied output projection", module.source.tensor
        else:
            continue
        layer = Int8Linear(tensor, module.bias, kernel)
        model.set_submodule(path, layer)
        swapped[kind].append(layer)
    return swapped


def _report(
    model: nn.Module, swapped: dict[str, list[Int8Linear]], fused: int, whole: int, kernel: str, why: str
) -> RuntimeReport:
    choices = [Choice(kind, len(layers), f"int8, {kernel}", why) for kind, layers in swapped.items() if layers]
    if fused:
        choices.append(Choice("activation", fused, "in the linear before it", "its values are at hand there"))
    if whole:
        choices.append(Choice("encoder layer", whole, "one call", "its parts share what is in the caches"))
    tables = sum(isinstance(module, QuantEmbedding) for module in model.modules())
    floats = sum(type(module) is nn.Linear for module in model.modules())
    if tables:
        choices.append(Choice("word embedding", tables, "rows decoded", "only the rows of a batch are needed"))
    if floats:
        choices.append(Choice("float linear", floats, "float", "the plan keeps heads and poolers in float"))
    errors = {path: module.folded_error for path, module in model.named_modules() if isinstance(module, Int8Linear)}
    worst = max(errors, key=errors.__getitem__)
    absence = kernels_absence()
    return RuntimeReport("torch", "latency", tuple(choices), (absence,) if absence else (), errors[worst], worst)


def refuse_static(model: PreTrainedModel) -> None:
    """Raise :class:`UnsupportedModelError` where a linear has a stored step for its inputs: others are used here."""
    path = static_path(model)
    if path is not None:
        raise UnsupportedModelError(
            f"{path}: its inputs have a stored step (a8s), and this layout finds its own; "
            'prepare the model with mode="memory", or use it unprepared'
        )


def static_path(model: PreTrainedModel) -> str | None:
    """The first linear with a stored step for its inputs, or None."""
    linears = ((path, module) for path, module in model.named_modules() if isinstance(module, QuantLinear))
    return next((path for path, module in linears if module.input_scale is not None), None)


def refuse_saving(*args: Any, **kwargs: Any) -> NoReturn:
    """Stands in for ``save_pretrained`` of a prepared model."""
    raise UnsupportedModelError("a prepared model is no backbone to be saved; save the model before it is prepared")
