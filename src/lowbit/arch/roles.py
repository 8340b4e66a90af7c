"""The role of every module that holds parameters: quantizable, tied, or skipped with a reason."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lowbit.arch.generic import GenericArchitecture
from lowbit.arch.table import ARCHITECTURES, Architecture


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
    return f"{path}.".removeprefix(base_prefix(model)).removesuffix(".")


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
    """One role per module that holds parameters or stored buffers, in model order.

    A model type without a row in the table gets the generic rule: linears inside the repeated blocks and the word
    embedding. The model itself, where it holds something of its own, has the empty name.
    """
    architecture = _architecture(model)
    ties = tied_modules(model)
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not own_tensors(module):
            continue
        name = relative_name(model, path)
        if path in ties:
            found.append(Role(name, path, "tied", f"shares {relative_name(model, ties[path])}"))
        elif _outside(model, path, architecture):
            found.append(Role(name, path, "skipped", "task head"))
        else:
            found.append(Role(name, path, *_classify(model, path, architecture)))
    return found


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint stores of a module itself, not of its members: parameters and persistent buffers."""
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if "." not in name}


def is_head(model: PreTrainedModel, path: str) -> bool:
    """Whether a module belongs to one task: everything outside the base model, and its pooler."""
    architecture = _architecture(model)
    return _outside(model, path, architecture) or architecture.is_pooler(relative_name(model, path))


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


def drop_pooler(model: PreTrainedModel, stored: Container[str]) -> None:
    """Take the pooler out of a base model whose checkpoint, with the names ``stored``, has no tensor of it.

    So is the base model of a RoBERTa classifier saved; a fresh pooler would be noise. A class that needs its pooler
    keeps it.
    """
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and not any(f"pooler.{name}" in stored for name in pooler.state_dict()):
        model.pooler = None


def _architecture(model: PreTrainedModel) -> Architecture | GenericArchitecture:
    """The table row of the model's type, or the generic rule."""
    return ARCHITECTURES.get(model.config.model_type) or GenericArchitecture(model)


def _outside(model: PreTrainedModel, path: str, architecture: Architecture | GenericArchitecture) -> bool:
    """Whether a module stands outside the base model."""
    return not f"{path}.".startswith(base_prefix(model)) or not architecture.is_base(relative_name(model, path))


def _classify(model: PreTrainedModel, path: str, architecture: Architecture | GenericArchitecture) -> tuple[str, str]:
    """Kind and reason of one untied module of the base model."""
    name, module = relative_name(model, path), model.get_submodule(path)
    if architecture.is_pooler(name):
        return "skipped", "pooler"
    if isinstance(module, nn.Embedding):
        if not architecture.is_word_embedding(name):
            return "skipped", "position or type embedding"
        plain = type(module) is nn.Embedding or isinstance(getattr(module, "embed_scale", None), float)
        return ("embedding", "") if plain else ("skipped", f"{type(module).__name__} is no plain embedding")
    if isinstance(module, nn.Linear | Conv1D):
        if reason := architecture.float_reason(name) or _special(model, path):
            return "skipped", reason
        return ("linear" if isinstance(module, nn.Linear) else "conv1d"), ""
    if "norm" in type(module).__name__.lower():
        return "skipped", "norm"
    return "skipped", "no matrix"


def _special(model: PreTrainedModel, path: str) -> str:
    """Why a linear cannot be replaced by a quantized one; empty where it can."""
    kind = type(model.get_submodule(path))
    if kind not in (nn.Linear, Conv1D):
        return f"{kind.__name__} is no plain linear"
    ties = model.all_tied_weights_keys
    return "weight tied to another linear" if f"{path}.weight" in {*ties, *ties.values()} else ""
