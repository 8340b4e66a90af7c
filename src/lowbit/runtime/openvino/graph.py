"""From a model with quantized modules to an OpenVINO graph that computes with its codes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lowbit.errors import UnsupportedModelError
from lowbit.nn import QuantEmbedding, QuantLinear, TiedQuantEmbedding, TiedQuantLinear
from lowbit.qtensor import QuantizedTensor
from lowbit.runtime.openvino.inputs import LEVELS, Folded, Grid

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class FloatTable(nn.Module):
    """An embedding over a float table [vocabulary, width] whose rows are multiplied by ``embed_scale``."""

    def __init__(self, weight: torch.Tensor, embed_scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.embed_scale = embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` integer [...] to rows [..., width]."""
        rows = F.embedding(ids, self.weight)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale


def float_twin(
    model: PreTrainedModel,
) -> tuple[PreTrainedModel, dict[str, QuantizedTensor], dict[str, QuantizedTensor]]:
    """A float copy of ``model``, and by path the payloads of its linears and of its tables."""
    twin = copy.deepcopy(model).eval()
    linears, tables = {}, {}
    for path, module in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(module, QuantLinear | TiedQuantLinear):
            linears[path] = module.tensor if isinstance(module, QuantLinear) else module.source.tensor
            twin.set_submodule(path, _linear(linears[path], module.bias))
        elif isinstance(module, QuantEmbedding | TiedQuantEmbedding):
            source = module if isinstance(module, QuantEmbedding) else module._source[0]
            tables[path] = source.tensor
            twin.set_submodule(path, FloatTable(source.tensor.dequantize(), module.embed_scale))
    nn.Module.float(twin)  # transformers refuses this of what was quantized
    return twin, linears, tables


def _linear(tensor: QuantizedTensor, bias: torch.Tensor | None) -> nn.Linear:
    out_features, in_features = tensor.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(tensor.dequantize(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


class _Traced(nn.Module):
    """The model as a function of its inputs by position, giving its named outputs as a tuple."""

    def __init__(self, model: PreTrainedModel, inputs: list[str], outputs: list[str], options: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs, self._options = inputs, outputs, options

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self._inputs, tensors, strict=True)), **self._options)
        return tuple(found[name] for name in self._outputs)


def trace(
    twin: PreTrainedModel, example: Mapping[str, torch.Tensor], outputs: list[str], options: dict[str, Any]
) -> Any:
    """The float model as an OpenVINO model of dynamic batch and length; inputs and outputs have their names."""
    import openvino

    traced = _Traced(twin, list(example), outputs, options)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, on Python values: what it made is compared with the model
        script = torch.jit.trace(traced, tuple(example.values()), check_trace=False, strict=False)
        graph = openvino.convert_model(script, example_input=tuple(example.values()))
    if len(graph.inputs) != len(example) or len(graph.outputs) != len(outputs):
        raise UnsupportedModelError(
            f"OpenVINO's graph of {type(twin).__name__} lacks inputs or outputs; use the backend `torch`"
        )
    for port, name in zip([*graph.inputs, *graph.outputs], [*example, *outputs], strict=True):
        port.get_tensor().set_names({name})
    for port in graph.inputs:
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        port.get_node().set_element_type(openvino.Type.i64)
    graph.validate_nodes_and_infer_types()
    return graph


def shared_inputs(graph: Any, linears: Mapping[str, QuantizedTensor]) -> list[dict[str, list[Any]]]:
    """The matrix products of ``linears`` in the graph, by path, in groups of those that share one input.

    A linear without a product raises UnsupportedModelError: it would stay in float unseen.
    """
    groups: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for node in graph.get_ordered_ops():
        path = _path(node)
        if node.get_type_name() == "MatMul" and path in linears:
            source = node.input_value(0)
            key = source.get_node().get_friendly_name(), source.get_index()
            groups.setdefault(key, {}).setdefault(path, []).append(node)
    missing = set(linears) - {path for group in groups.values() for path in group}
    if missing:
        raise UnsupportedModelError(
            f"{min(missing)}: not found in OpenVINO's graph of the model; use the backend `torch`"
        )
    return list(groups.values())


def put_linears(group: dict[str, list[Any]], grid: Grid, folded: Mapping[str, Folded]) -> None:
    """Make the products of one group integer ones: inputs on the grid, weights as codes, outputs shifted."""
    from openvino import opset13

    source = next(iter(group.values()))[0].input_value(0)
    if bool((grid.divisors != 1).any()):
        rank = source.get_partial_shape().rank.get_length()
        divisors = (1 / grid.divisors).view(*[1] * (rank - 1), -1).numpy()
        source = opset13.multiply(source, opset13.constant(divisors)).output(0)
    low, high = (opset13.constant(np.float32(bound)) for bound in (grid.low, grid.high))
    inputs = opset13.fake_quantize(source, low, high, low, high, LEVELS).output(0)
    for path, nodes in group.items():
        weight, shift = _scaled(folded[path]), opset13.constant(folded[path].shift.numpy())
        for node in nodes:
            node.input(0).replace_source_output(inputs)
            node.input(1).replace_source_output(weight)
            readers = node.output(0).get_target_inputs()
            shifted = opset13.add(node, shift).output(0)
            for reader in readers:
                reader.replace_source_output(shifted)


def put_table(graph: Any, path: str, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Look up codes and row steps where the graph looks rows of the float table at ``path`` up."""
    from openvino import opset13

    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Gather" and _path(node) == path:
            ids, axis = node.input_value(1), opset13.constant(np.int64(0))
            rows = opset13.convert(opset13.gather(opset13.constant(codes.numpy()), ids, axis), np.float32)
            steps = opset13.gather(opset13.constant(scale.contiguous().numpy()), ids, axis)
            found = opset13.multiply(rows, steps).output(0)
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(found)


def _scaled(folded: Folded) -> Any:
    from openvino import opset13

    values = opset13.convert(opset13.constant(folded.codes.numpy()), np.float32)
    return opset13.multiply(values, opset13.constant(folded.scale.numpy())).output(0)


def _path(node: Any) -> str:
    """The path of the module that a node was made of; OpenVINO names nodes ``__module.model.PATH/OPERATION``."""
    return str(node.get_friendly_name()).partition("/")[0].removeprefix("__module.model.")
