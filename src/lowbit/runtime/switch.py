"""Many adapters on one prepared backbone: what an adapter changes is scattered into the int8 layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowbit.adapter import FACTORS, AdapterInfo, adapter_target, read_adapter
from lowbit.arch import find_module, is_head
from lowbit.errors import AdapterError, UnsupportedModelError, naming
from lowbit.nn import Int8Linear, Patch

_SPARSE_PARTS = ("outlier_ptr", "outlier_col", "outlier_value", "scale")
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A task adapter in the units of one prepared model: patches by module path, other values by name.

    ``info`` is None for the backbone itself and for the adapter that a model was prepared with.
    """

    info: AdapterInfo | None
    patches: Mapping[str, Patch]
    values: Tensors

    @property
    def nbytes(self) -> int:
        """Bytes that it holds in memory."""
        values = sum(value.nbytes for value in self.values.values())
        return values + sum(patch.nbytes for patch in self.patches.values())


@dataclass
class TaskState:
    """What a prepared model needs to take a task on and off: ``model.lowbit_tasks``.

    ``own`` are the backbone's values of everything that some task has replaced, ``targets`` what holds them, ``layers``
    the int8 linears by path: looking names up would take longer than to change the values.
    """

    fingerprint: str
    layers: Mapping[str, Int8Linear]
    active: Task = Task(None, {}, {})
    own: dict[str, torch.Tensor] = field(default_factory=dict)
    targets: dict[str, torch.Tensor] = field(default_factory=dict)


def load_task(model: PreTrainedModel, adapter: str | Path) -> Task:
    """Read an adapter for :func:`switch`; many of them may be held for one prepared model.

    An adapter of another backbone, with low-rank factors, or that does not fit the model raises AdapterError.
    """
    info, tensors = read_adapter(adapter)
    own = _state(model).fingerprint
    if info.fingerprint != own:
        raise AdapterError(
            f"{adapter} was trained on the backbone {info.fingerprint[:12]}, this one is {own[:12]}; "
            "load the backbone it was trained on"
        )
    if info.format == FACTORS:
        raise AdapterError(f"{adapter} holds low-rank factors, which cannot be folded; use the model unprepared")
    return make_task(model, tensors, info)


def make_task(model: PreTrainedModel, tensors: Tensors, info: AdapterInfo | None) -> Task:
    """A task from an adapter's tensors by their relative names."""
    layers = _state(model).layers
    changed: dict[str, dict[str, torch.Tensor]] = {}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        relative, _, part = name.rpartition(".")
        path = find_module(model, relative) or ""
        if part in _SPARSE_PARTS and path in layers:
            changed.setdefault(path, {})[part] = tensor
            continue
        target = adapter_target(model, name)
        if target.shape != tensor.shape and not is_head(model, path):
            raise AdapterError(f"{name!r} is {list(tensor.shape)}, the model has {list(target.shape)}")
        values[name] = tensor.to(target.dtype, copy=True)
    patches = {}
    for path, parts in changed.items():
        with naming(path):
            patches[path] = layers[path].patch(**parts)
    return Task(info, patches, values)


@torch.no_grad()
def switch(model: PreTrainedModel, adapter: str | Path | Task | None) -> PreTrainedModel:
    """Put an adapter, a folder or what :func:`load_task` gave, in the place of the active one; None takes it off.

    Only values at the adapter's positions are written, as codes in units of the backbone's steps; a value beyond the
    largest code keeps what is missing in float32. Trained step sizes rescale the rows. Switching away and back gives
    the same bytes. Labels and number of outputs follow the adapter.
    """
    state = _state(model)
    task = (
        Task(None, {}, {}) if adapter is None else adapter if isinstance(adapter, Task) else load_task(model, adapter)
    )
    for path in {**state.active.patches, **task.patches}:
        state.layers[path].put(task.patches.get(path))
    for name in {**state.active.values, **task.values}:
        if name not in state.targets:
            state.targets[name] = adapter_target(model, name)
            state.own[name] = state.targets[name].detach().clone()
        _replace(state.targets[name], task.values.get(name, state.own[name]))
    state.active = task
    if task.info is not None:
        _relabel(model, task.info)
    return model


def by_task(
    model: PreTrainedModel, tasks: Mapping[str, Task], batch: Sequence[tuple[str, Any]], run: Callable[[list[Any]], Any]
) -> list[Any]:
    """Results of a mixed batch of (name of a task, row), in its order: one call of ``run`` with the rows of each task.

    ``run`` takes a list of rows and gives as many results; the task of the last call stays active.
    """
    results: list[Any] = [None] * len(batch)
    for name in dict.fromkeys(name for name, _ in batch):
        switch(model, tasks[name])
        places = [place for place, (wanted, _) in enumerate(batch) if wanted == name]
        for place, result in zip(places, run([batch[place][1] for place in places]), strict=True):
            results[place] = result
    return results


def _replace(target: torch.Tensor, value: torch.Tensor) -> None:
    """Parameters take the tensor over, as copying a head of another size is not possible; other tensors are views."""
    if isinstance(target, torch.nn.Parameter):
        target.data = value
    else:
        target.copy_(value)


def _relabel(model: PreTrainedModel, info: AdapterInfo) -> None:
    if info.is_language_model:
        return
    names = ("LABEL_0",) if info.label_names is None else info.label_names
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.config.problem_type = "regression" if info.label_names is None else "single_label_classification"


def _state(model: PreTrainedModel) -> TaskState:
    state = getattr(model, "lowbit_tasks", None)
    if not isinstance(state, TaskState):
        raise UnsupportedModelError(
            "the model is not prepared for switching; call `prepare` first, with mode latency and backend torch, on a "
            "backbone without an adapter whose step sizes cannot change afterwards"
        )
    return state
