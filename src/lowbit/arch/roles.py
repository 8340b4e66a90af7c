"""The role of every module that holds parameters: quantizable, tied, or skipped with a reason."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowbit.arch.table import Architecture, get_architecture


@dataclass(frozen=True)
class Role:
    """``kind`` is ``linear``, ``conv1d``, ``embedding``, ``tied`` or ``skipped``.

    ``name`` is relative to the base model for its modules (heads keep their own name), ``path`` is the name
    inside this model; ``reason`` says why a module is skipped, or what a tied one shares.
    """

    name: str
    path: str
    kind: str
    reason: str = ""


def base_prefix(model: PreTrainedModel) -> str:
    """The prefix of base-model names inside this model, with its dot: ``bert.`` or nothing."""
    prefix = model.base_model_prefix
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def relative_name(model: PreTrainedModel, path: str) -> str:
    """A module's name as it is in the base model, whatever task class holds it."""
    return path.removeprefix(base_prefix(model))


def find_module(model: PreTrainedModel, name: str) -> str | None:
    """The path of a module given by its relative name; None when this task class does not have it."""
    for path in (base_prefix(model) + name, name):
        try:
            model.get_submodule(path)
        except AttributeError:
            continue
        return path
    return None


def roles(model: PreTrainedModel) -> list[Role]:
    """One role per module that holds parameters, in model order."""
    architecture = get_architecture(model.config.model_type)
    prefix = base_prefix(model)
    ties = tied_modules(model)
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        name = path.removeprefix(prefix)
        in_base = path.startswith(prefix) and architecture.is_base(name)
        if path in ties:
            found.append(Role(name, path, "tied", f"shares {relative_name(model, ties[path])}"))
        else:
            kind, reason = _classify(name, module, architecture, in_base)
            found.append(Role(name, path, kind, reason))
    return found


def is_head(model: PreTrainedModel, path: str) -> bool:
    """Whether a module belongs to one task: everything outside the base model, and its pooler."""
    architecture, name = get_architecture(model.config.model_type), relative_name(model, path)
    return not architecture.is_base(name) or architecture.is_pooler(name)


def tied_modules(model: PreTrainedModel) -> dict[str, str]:
    """Paths of modules whose weight is tied to a word embedding, mapped to the path of that embedding."""
    suffix = ".weight"
    return {
        target.removesuffix(suffix): source.removesuffix(suffix)
        for target, source in model.all_tied_weights_keys.items()
        if target.endswith(suffix) and isinstance(model.get_submodule(source.removesuffix(suffix)), nn.Embedding)
    }


def untie(model: PreTrainedModel, stored: Container[str]) -> None:
    """Drop the ties of weights that a checkpoint with the names ``stored`` holds for themselves.

    T5 v1.1 is declared tied but has its own output projection; transformers goes by the checkpoint, too.
    """
    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if target not in stored and relative_name(model, target) not in stored
    }


def _classify(name: str, module: nn.Module, architecture: Architecture, in_base: bool) -> tuple[str, str]:
    """Kind and reason of one untied module."""
    if not in_base:
        return "skipped", "task head"
    if architecture.is_pooler(name):
        return "skipped", "pooler"
    if isinstance(module, nn.Embedding):
        if re.fullmatch(architecture.embeddings, name):
            return "embedding", ""
        return "skipped", "position or type embedding"
    if isinstance(module, nn.Linear | Conv1D):
        if re.fullmatch(architecture.blocks, name):
            return ("linear" if isinstance(module, nn.Linear) else "conv1d"), ""
        return "skipped", "linear outside the transformer blocks"
    if "norm" in type(module).__name__.lower():
        return "skipped", "norm"
    return "skipped", "no matrix"
