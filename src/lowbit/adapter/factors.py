"""Low-rank factors of an adapter on a backbone. Whatever needs the library peft is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from lowbit.arch import find_module, relative_name
from lowbit.errors import AdapterError
from lowbit.loop import isolated_rng
from lowbit.nn import QuantLinear

Tensors = dict[str, torch.Tensor]
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def read_factors(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> tuple[Pairs, Tensors]:
    """A [rank, in] and B [out, rank] by path in the model, and the other tensors by relative name.

    Factors that fit no quantized linear of this model raise AdapterError.
    """
    from lowbit.hf.peft import split_tensors

    pairs, rest = split_tensors(tensors)
    modules = dict(model.named_modules())
    for path, (down, up) in pairs.items():
        module = modules.get(path)
        fits = isinstance(module, QuantLinear) and (up.shape[0], down.shape[1]) == module.shape
        if not fits or down.shape[0] != up.shape[1]:
            raise AdapterError(
                f"the adapter's factors for {path!r} fit no quantized linear of a {type(model).__name__}"
            )
    return pairs, {relative_name(model, name): tensor for name, tensor in rest.items()}


def put_factors(model: PreTrainedModel, pairs: Pairs, head: Tensors) -> None:
    """Put factors, in the model's dtype, on a model that has none; its ``head`` has its values already."""
    from lowbit.hf.peft import add_factors, factors

    dtype = model.dtype
    heads = {path for name in head if (path := find_module(model, name.rpartition(".")[0]))}
    with isolated_rng(0):
        add_factors(model, next(iter(pairs.values()))[0].shape[0], pairs, heads)
    for path, parameters in factors(model).items():
        for parameter, value in zip(parameters, pairs[path], strict=True):
            parameter.data = value.to(parameter.device, dtype)


def take_factors_off(model: PreTrainedModel) -> None:
    """Remove the factors of a model, if there are any."""
    if _has_factors(model):
        from lowbit.hf.peft import remove_factors

        remove_factors(model)


def factors_aside(model: PreTrainedModel) -> AbstractContextManager[None]:
    """See the model without its factors for a while."""
    if not _has_factors(model):
        return nullcontext()
    from lowbit.hf import peft

    return peft.factors_aside(model)


def _has_factors(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "peft_config", None))
