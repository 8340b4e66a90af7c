"""Putting task adapters on a backbone, swapping them, and taking them off again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.adapter.factors import Pairs, factors_aside, put_factors, read_factors, take_factors_off
from lowbit.adapter.files import read_adapter
from lowbit.adapter.info import FACTORS, AdapterInfo
from lowbit.arch import base_prefix, find_module
from lowbit.checkpoint import fingerprint, tensor_entry
from lowbit.errors import AdapterError
from lowbit.hf import disk_tensors
from lowbit.nn import SPARSE, QuantModule, overlay


def model_fingerprint(model: PreTrainedModel) -> str:
    """Fingerprint of the backbone in a loaded model without adapter: the one that ``lowbit verify`` prints.

    A model without quantized modules raises :class:`AdapterError`.
    """
    stored = {
        path.removeprefix(base_prefix(model)): path
        for path, module in model.named_modules()
        if isinstance(module, QuantModule)
    }
    if not stored:
        raise AdapterError("the model has no quantized modules; make a backbone with `lowbit quantize` first")
    paths = tuple(f"{path}." for path in stored.values())
    tensors = {name: tensor for name, tensor in disk_tensors(model).items() if name.startswith(paths)}
    return fingerprint({name: tensor_entry(tensor) for name, tensor in tensors.items()}, stored)


def apply_adapter(model: PreTrainedModel, directory: str | Path) -> AdapterInfo:
    """Put an adapter on a loaded backbone, in place of the one that is on it.

    An adapter of another backbone, or one that does not fit this task class, raises :class:`AdapterError` and
    leaves the model as it was.
    """
    info, tensors = read_adapter(directory)
    active = getattr(model, "lowbit_adapter", None)
    own = active.fingerprint if active is not None else model_fingerprint(model)
    if info.fingerprint != own:
        raise AdapterError(
            f"{directory} was trained on the backbone {info.fingerprint[:12]}, this one is {own[:12]}; "
            "load the backbone it was trained on"
        )
    own_values = {} if active is None else active.replaced  # what the model has without the active adapter
    pairs: Pairs = {}
    with factors_aside(model):
        if info.format == FACTORS:
            pairs, tensors = read_factors(model, tensors)
        targets = {name: own_values.get(name, adapter_target(model, name)) for name in tensors}
        widened = _widened(model, tensors)
    sparse = {f"{path}.{part}" for path in widened for part in SPARSE}
    for name, tensor in tensors.items():
        if name not in sparse and targets[name].shape != tensor.shape:
            found = list(targets[name].shape)
            raise AdapterError(
                f"{directory}: {name!r} is {list(tensor.shape)}, the model has {found}; check the labels"
            )
    remove_adapter(model)
    replaced = {name: adapter_target(model, name).detach().clone() for name in tensors}
    model.lowbit_adapter = _Active(own, replaced)
    for path, module in widened.items():
        overlay(module, *(tensors[f"{path}.{part}"] for part in SPARSE))
    _assign(model, {name: tensor for name, tensor in tensors.items() if name not in sparse})
    if pairs:
        put_factors(model, pairs, tensors)
    return info


def remove_adapter(model: PreTrainedModel) -> None:
    """Take the adapter off: every value is again what it was before :func:`apply_adapter`, bit for bit."""
    active = getattr(model, "lowbit_adapter", None)
    if active is not None:
        take_factors_off(model)
        for path, module in _widened(model, active.replaced).items():
            for part in SPARSE:
                setattr(module, part, active.replaced[f"{path}.{part}"].to(module.codes.device))
        _assign(model, active.replaced)
        model.lowbit_adapter = None


def adapter_target(model: PreTrainedModel, name: str) -> torch.Tensor:
    """The parameter or buffer that an adapter's tensor ``name`` replaces; a missing one raises AdapterError."""
    for path in (base_prefix(model) + name, name):
        module, _, part = path.rpartition(".")
        try:
            found = getattr(model.get_submodule(module), part, None)
        except AttributeError:
            continue
        if isinstance(found, torch.Tensor):
            return found
    raise AdapterError(f"the adapter trains {name!r}, which {type(model).__name__} does not have; load its own class")


class _Active:
    """What is needed to take an adapter off: the backbone's fingerprint and the values that were replaced."""

    def __init__(self, own: str, replaced: Mapping[str, torch.Tensor]) -> None:
        self.fingerprint, self.replaced = own, replaced


def _widened(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, QuantModule]:
    """The modules, by their name in the adapter, for which it holds positions of its own beside the values.

    One that the model keeps no outliers for, or one in part, raises AdapterError.
    """
    found = {}
    for name in tensors:
        path, _, part = name.rpartition(".")
        if part != SPARSE[0]:
            continue
        module = model.get_submodule(find_module(model, path) or "")
        if not isinstance(module, QuantModule) or not all(f"{path}.{other}" in tensors for other in SPARSE):
            raise AdapterError(f"the adapter's positions for {path!r} are incomplete or fit no quantized module")
        found[path] = module
    return found


@torch.no_grad()
def _assign(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        adapter_target(model, name).copy_(tensor)
