"""Activations that follow an int8 linear directly are computed with it, on values that are at hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from lowbit.nn import Int8Linear


def fuse_activations(model: PreTrainedModel) -> int:
    """Move exact GELU and ReLU modules into the int8 linears before them; returns how many.

    What follows what is seen in one run on three tokens: an activation is moved where every input it got was the very
    output of one linear, as it left it.
    """
    sources = _sources(model)
    for path, (layer, activation) in sources.items():
        layer.activation = activation
        model.set_submodule(path, nn.Identity())
    return len(sources)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.ReLU):
        return "relu"
    exact = isinstance(module, nn.GELU) and module.approximate == "none"
    return "gelu" if exact or (isinstance(module, GELUActivation) and module.act is nn.functional.gelu) else None


def _sources(model: PreTrainedModel) -> dict[str, tuple[Int8Linear, str]]:
    """By path of an activation, the one linear that feeds it, and its kind."""
    outputs: dict[int, tuple[torch.Tensor, Int8Linear]] = {}  # the tensors, too, so that no id is used twice
    seen: dict[str, set[Int8Linear | None]] = {}
    kinds = {path: kind for path, module in model.named_modules() if (kind := _kind(module))}

    def note_output(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(layer, Int8Linear)
        outputs[id(output)] = (output, layer)

    def note_input(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found = outputs.get(id(inputs[0]))
            seen.setdefault(path, set()).add(None if found is None else found[1])

        return hook

    hooks = [m.register_forward_hook(note_output) for m in model.modules() if isinstance(m, Int8Linear)]
    hooks += [model.get_submodule(path).register_forward_pre_hook(note_input(path)) for path in kinds]
    inputs = dict.fromkeys(
        {"input_ids", "decoder_input_ids"} & inspect.signature(model.base_model.forward).parameters.keys(),
        torch.ones(1, 3).long(),
    )
    try:
        model.base_model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    single = {path: next(iter(layers)) for path, layers in seen.items() if len(layers) == 1}
    return {path: (layer, kinds[path]) for path, layer in single.items() if layer is not None}
