"""Putting task adapters on a backbone, swapping them, and taking them off again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.adapter.files import read_adapter
from lowbit.adapter.info import AdapterInfo
from lowbit.arch import base_prefix
from lowbit.checkpoint import fingerprint, tensor_entry
from lowbit.errors import AdapterError
from lowbit.hf import disk_tensors
from lowbit.nn import QuantModule


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
    targets = {name: adapter_target(model, name) for name in tensors}
    for name, tensor in tensors.items():
        if targets[name].shape != tensor.shape:
            found = list(targets[name].shape)
            raise AdapterError(
                f"{directory}: {name!r} is {list(tensor.shape)}, the model has {found}; check the labels"
            )
    remove_adapter(model)
    model.lowbit_adapter = _Active(own, {name: target.detach().clone() for name, target in targets.items()})
    _assign(model, tensors)
    return info


def remove_adapter(model: PreTrainedModel) -> None:
    """Take the adapter off: every value is again what it was before :func:`apply_adapter`, bit for bit."""
    active = getattr(model, "lowbit_adapter", None)
    if active is not None:
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


@torch.no_grad()
def _assign(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        adapter_target(model, name).copy_(tensor)
