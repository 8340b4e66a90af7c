"""Which parameters stage 2 trains."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from lowbit.arch import is_head, relative_name, roles
from lowbit.errors import AdapterError
from lowbit.nn import QuantLinear, QuantModule, TiedQuantLinear

GROUPS = ("outliers", "norms", "biases", "scales", "head")


def prepare(
    model: PreTrainedModel, *, norms: bool = True, biases: bool = True, scales: bool = False
) -> dict[str, list[str]]:
    """Freeze a quantized model but for its outliers, its head and, by choice, norms, biases and step sizes.

    Returns the names of the trained parameters by group, relative to the base model. Poolers count as head: they are
    float and sit between the encoder and the classifier. A projection onto the vocabulary does not: tied, it is the
    quantized embedding, and untied, it would make the adapter as large as an embedding; it stays frozen. Values are
    trained in float32. A model without outliers raises :class:`AdapterError`. Source: PreQuant, arXiv 2306.00014,
    stage 2.
    """
    linears = {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}
    if not any(module.outlier_value is not None for module in linears.values()):
        raise AdapterError("the model has no outliers to tune; quantize it with some, as in --scheme w4")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for path, module in linears.items():
        if module.outlier_value is not None:
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


def finish(model: PreTrainedModel) -> None:
    """Turn trained payloads back into frozen buffers of their stored dtype."""
    for module in model.modules():
        if isinstance(module, QuantModule):
            for name in ("outlier_value", "scale"):
                if name in module._parameters:
                    module.freeze_payload(name)


def linear_weights(model: PreTrainedModel) -> int:
    """Weights of the block linears, quantized or not: what trained shares refer to."""
    quantized = [m.shape[0] * m.shape[1] for m in model.modules() if isinstance(m, QuantLinear)]
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
