"""Putting quantized modules in the place of float ones, ties included."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.arch.roles import tied_modules
from lowbit.errors import UnsupportedModelError, naming
from lowbit.nn import FakeQuantLinear, QuantEmbedding, QuantLinear, TiedQuantEmbedding, TiedQuantLinear
from lowbit.qtensor import QuantizedTensor


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """Shape [out, in] of a linear, ``Conv1D`` (stored transposed) or embedding."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (columns, rows) if _is_conv1d(module) else (rows, columns)


def float_weight(module: nn.Module, stored: torch.Tensor) -> torch.Tensor:
    """A stored weight of ``module`` as [out, in]."""
    return stored.t() if _is_conv1d(module) else stored


def swap_modules(model: PreTrainedModel, tensors: dict[str, QuantizedTensor]) -> None:
    """Replace the modules at the given paths by quantized ones, and what is tied to them by tied ones.

    Afterwards ``tie_weights()`` leaves quantized modules alone, and ``resize_token_embeddings`` on a quantized
    table raises :class:`UnsupportedModelError`.
    """
    ties = {target: source for target, source in tied_modules(model).items() if source in tensors}
    for path, tensor in tensors.items():
        model.set_submodule(path, _quantized(model.get_submodule(path), tensor))
    for target, source in ties.items():
        table = model.get_submodule(source)
        assert isinstance(table, QuantEmbedding)
        model.set_submodule(target, _tied(model.get_submodule(target), table))
    _forget_ties(model, set(tensors))
    if any(isinstance(model.get_submodule(path), QuantEmbedding) for path in tensors):
        model.resize_token_embeddings = _refuse_resize


def swap_fake_modules(model: PreTrainedModel, tensors: dict[str, QuantizedTensor]) -> None:
    """Replace the linears at the given paths by fake quantizers that start from these tensors, to be trained.

    Word embeddings become quantized ones for good, and are not trained: so they are shared by what is tied to them, and
    a step unpacks the rows of its batch only. A grid that cannot be trained raises :class:`SchemeError`.
    """
    tables = {path: t for path, t in tensors.items() if isinstance(model.get_submodule(path), nn.Embedding)}
    swap_modules(model, tables)
    for path, tensor in tensors.items():
        if path not in tables:
            model.set_submodule(path, _fake(path, model.get_submodule(path), tensor))


def pack_model(model: PreTrainedModel) -> None:
    """Replace the fake quantizers of :func:`swap_fake_modules` by quantized modules of the same weights, bit for bit.

    Weights that are not finite raise :class:`WeightError` with the module's path, and the model stays as it is.
    """
    tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, FakeQuantLinear):
            with naming(path):
                tensors[path] = module.pack()
    swap_modules(model, tensors)


def _quantized(module: nn.Module, tensor: QuantizedTensor) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(tensor, module.padding_idx, module.weight.dtype, _embed_scale(module))
    return QuantLinear(tensor, module.bias)  # type: ignore[arg-type]


def _fake(path: str, module: nn.Module, tensor: QuantizedTensor) -> FakeQuantLinear:
    with naming(path):
        return FakeQuantLinear(float_weight(module, module.weight.data), tensor, module.bias)  # type: ignore[arg-type]


def _tied(module: nn.Module, table: QuantEmbedding) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return TiedQuantEmbedding(table, _embed_scale(module))
    return TiedQuantLinear(table, module.bias)  # type: ignore[arg-type]


def _embed_scale(module: nn.Embedding) -> float:
    """What a table multiplies its rows by; only BART's kind does."""
    return getattr(module, "embed_scale", 1.0)


def _forget_ties(model: PreTrainedModel, quantized: set[str]) -> None:
    """Drop the ties to weights that are quantized now, here and in every sub-model: the modules hold them."""
    sources = {f"{path}.weight" for path in quantized}
    model.all_tied_weights_keys = {k: v for k, v in model.all_tied_weights_keys.items() if v not in sources}
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module._tied_weights_keys:
            prefix = f"{path}." if path else ""
            module._tied_weights_keys = {
                key: source for key, source in module._tied_weights_keys.items() if prefix + source not in sources
            }


def _refuse_resize(*args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedModelError(
        "a quantized embedding cannot be resized; resize the float model first and quantize it again, "
        "or quantize with embeddings kept in float"
    )


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
