"""Which parameters stage 2 trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from lowbit.arch import is_head, relative_name, roles
from lowbit.errors import AdapterError
from lowbit.kernels import note_origin
from lowbit.nn import QuantLinear, QuantModule, TiedQuantLinear, widen
from lowbit.tuning.positions import Positions

_CACHES = {"none": None, "bf16": torch.bfloat16, "fp32": torch.float32}
GROUPS = ("outliers", "norms", "biases", "scales", "head")


def prepare(
    model: PreTrainedModel,
    *,
    outliers: bool = True,
    norms: bool = True,
    biases: bool = True,
    scales: bool = True,
) -> dict[str, list[str]]:
    """Freeze a quantized model but for its head and, by choice, outliers, norms, biases and step sizes.

    Returns the names of the trained parameters by group, relative to the base model. Poolers count as head: they are
    float and sit between the encoder and the classifier. A projection onto the vocabulary does not: tied, it is the
    quantized embedding, and untied, it would make the adapter as large as an embedding; it stays frozen. Values are
    trained in float32. A model without the outliers to train raises :class:`AdapterError`. Source: PreQuant, arXiv
    2306.00014, stage 2.
    """
    linears = quant_linears(model)
    if outliers and not any(module.outlier_value is not None for module in linears.values()):
        raise AdapterError("the model has no outliers to tune; quantize it with some, as in --scheme w4")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for path, module in linears.items():
        if outliers and module.outlier_value is not None:
            module.train_payload("outlier_value")
            groups["outliers"].append(f"{path}.outlier_value")
        if scales:
            module.train_payload("scale")
            groups["scales"].append(f"{path}.scale")
        if biases and module.bias is not None:
            groups["biases"].append(f"{path}.bias")
    projection = model.get_output_embeddings()
    for path, part in _float_parameters(model):
        module = model.get_submodule(path)
        kind = "" if module is projection else _group(model, path, module)
        if kind == "head" or (kind == "norms" and norms):
            groups[kind].append(f"{path}.{part}" if path else part)
    for names in groups.values():
        for name in names:
            model.get_parameter(name).requires_grad_(True)
    return {group: [relative_name(model, name) for name in names] for group, names in groups.items()}


@torch.no_grad()
def train_positions(model: PreTrainedModel, positions: Positions, initial: str) -> None:
    """Let training change the outlier values at flat int64 ``positions`` only, by module path; none means all of them.

    Trained values start as they are ``stored``, or as their codes are ``decoded``.
    """
    for path, module in quant_linears(model).items():
        value = module._parameters.get("outlier_value")
        if value is None:
            continue
        trained = torch.ones_like(value, dtype=torch.bool)
        if path in positions:
            module.freeze_payload("outlier_value")
            widen(module, positions[path])
            value = module.train_payload("outlier_value")
            trained = torch.isin(module.tensor.outlier_positions(), positions[path])
            value.register_hook(_masked(trained))
        if initial == "decoded":
            decoded = module.tensor.dequantize_dense().view(-1)[module.tensor.outlier_positions()]
            value.copy_(torch.where(trained, decoded, value))


def _masked(trained: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A hook that lets gradients through where ``trained`` is set; the parameter may move to another device."""
    return lambda grad: grad * trained.to(grad.device)


def cache_weights(model: PreTrainedModel, cache: str) -> None:
    """Keep a decoded copy of every linear's weight in ``bf16`` or ``fp32``, or with ``none`` let go of it."""
    for module in quant_linears(model).values():
        module.cache(_CACHES[cache])


@contextmanager
def activations_remade(model: nn.Module) -> Iterator[None]:
    """Inside the block a quantized linear behind GELU makes its input again in the backward pass.

    Autograd keeps GELU's own input in any case; the output, which is as large, need not be kept beside it.
    """
    gelus = [module for module in model.modules() if isinstance(module, nn.GELU | GELUActivation)]
    hooks = [module.register_forward_hook(note_origin) for module in gelus]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def quant_linears(model: PreTrainedModel) -> dict[str, QuantLinear]:
    """The quantized linears by path, in model order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}


def finish(model: PreTrainedModel) -> None:
    """Turn trained payloads back into frozen buffers of their stored dtype."""
    for module in model.modules():
        if isinstance(module, QuantModule):
            for name in ("outlier_value", "scale"):
                if name in module._parameters:
                    module.freeze_payload(name)


def linear_weights(model: PreTrainedModel) -> int:
    """Weights of the block linears, quantized or not: what trained shares refer to."""
    quantized = [module.shape[0] * module.shape[1] for module in quant_linears(model).values()]
    if quantized:
        return sum(quantized)
    blocks = [role.path for role in roles(model) if role.kind in ("linear", "conv1d")]
    return sum(model.get_submodule(path).weight.numel() for path in blocks)


def _float_parameters(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Module path and parameter name of everything outside the quantized modules."""
    return [
        (path, part)
        for path, module in model.named_modules()
        if not isinstance(module, QuantModule | TiedQuantLinear)
        for part, _ in module.named_parameters(recurse=False)
    ]


def _group(model: PreTrainedModel, path: str, module: nn.Module) -> str:
    """The group of a float module: ``head``, ``norms``, or nothing that is trained."""
    if is_head(model, path):
        return "head"
    return "norms" if "norm" in type(module).__name__.lower() else ""
