"""Making the OpenVINO layout of a loaded model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lowbit.adapter import model_fingerprint
from lowbit.arch import position_limit
from lowbit.calibration import Batch, generated_inputs, text_inputs
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import DataError, UnsupportedModelError
from lowbit.kernels import saturates
from lowbit.loop import isolated_rng
from lowbit.runtime.latency import refuse_static
from lowbit.runtime.openvino import graph as graphs
from lowbit.runtime.openvino.inputs import choose_grid, observe
from lowbit.runtime.openvino.model import Signature, compile_graph, core, wrap
from lowbit.runtime.openvino.weights import table_codes
from lowbit.runtime.report import Choice, RuntimeReport

_GENERATED_BATCHES = 4
_RANDOM_LENGTHS = (4, 12, 20)
_TOLERANCE = 1e-3

Calibration = Iterable[str | Mapping[str, Any]]


def prepare_openvino(model: PreTrainedModel, calibration: Calibration | None = None) -> PreTrainedModel:
    """``model``, as ``lowbit.load`` gives it, as a model of the same class that runs in OpenVINO with 8-bit products.

    Weights are the stored codes, outliers folded in; activations are on 256 fixed levels, whose ranges are the largest
    seen on ``calibration``: texts (the tokenizer is that of the model's folder) or encoded batches. Without any, on
    texts of words drawn from the vocabulary, or, for a model that has no folder, on random ids. The outputs have the
    model's own class. The model given is left as it is.

    Raises MissingExtraError without OpenVINO, UnsupportedModelError for models that generate text or have static
    activations, and DataError for calibration data without rows.
    """
    core()
    refuse_static(model)
    names = _inputs(model)
    twin, linears, tables = graphs.float_twin(model)
    batches = calibration_batches(model, calibration, names)
    example = _example(model, names, rows=2, length=7)
    with isolated_rng(0):
        options, outputs, kind = _outputs(twin, example)
        graph = graphs.trace(twin, example, outputs, options)
        _check(graph, twin, _example(model, names, rows=3, length=5), outputs, options)
    seen = observe(twin, linears, batches)
    spare = saturates()
    chosen: dict[tuple[str, ...], Any] = {}
    for group in graphs.shared_inputs(graph, linears):
        paths = tuple(sorted(group))
        if paths not in chosen:
            chosen[paths] = choose_grid({path: linears[path] for path in paths}, seen, spare=spare)
        graphs.put_linears(group, *chosen[paths])
    for path, tensor in tables.items():
        found = table_codes(tensor)
        if found is not None:
            graphs.put_table(graph, path, *found)
    graph.validate_nodes_and_infer_types()
    signature = Signature(type(model).__name__, kind, tuple(names), tuple(outputs), spare, model_fingerprint(model))
    prepared: PreTrainedModel = wrap(type(model), model.config, graph, signature)
    prepared.name_or_path = model.name_or_path
    prepared.lowbit_runtime = RuntimeReport(
        "openvino",
        "latency",
        (Choice("linear", len(linears), "int8, OpenVINO", "static ranges of inputs"),),
        ("VNNI instructions, without which OpenVINO's 8 bits are about as fast as float",) if spare else (),
    )
    return prepared


def calibration_batches(model: PreTrainedModel, calibration: Calibration | None, names: Sequence[str]) -> list[Batch]:
    """Calibration data as batches with exactly the inputs ``names``."""
    found: Any
    if calibration is None:
        found = _generated(model)
    else:
        items = list(calibration)
        texts = [item for item in items if isinstance(item, str)]
        if texts and len(texts) < len(items):
            raise DataError("calibration holds texts and batches; give one kind")
        found = items if not texts else text_inputs(model, load_tokenizer(Path(model.name_or_path)), texts)
    if not found:
        raise DataError("calibration is empty; give at least one text or batch, or none at all for generated text")
    return [_completed(batch, names) for batch in found]


def _generated(model: PreTrainedModel) -> list[Batch]:
    folder = Path(model.name_or_path)
    if model.name_or_path and folder.is_dir():
        batches = generated_inputs(model, load_tokenizer(folder))
        return batches[:: max(1, len(batches) // _GENERATED_BATCHES)]  # of short texts and of long ones
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(model.config.vocab_size, (8, length), generator=generator)}
        for length in _RANDOM_LENGTHS
    ]


def _completed(batch: Mapping[str, Any], names: Sequence[str]) -> Batch:
    ids = torch.as_tensor(batch["input_ids"])
    fresh = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {name: torch.as_tensor(batch[name]) if name in batch else fresh[name] for name in names}


def _inputs(model: PreTrainedModel) -> list[str]:
    """Which inputs the graph has; a model that generates text raises UnsupportedModelError."""
    if model.can_generate() or model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"the OpenVINO backend runs encoders and classifiers of one stack, not {type(model).__name__}, "
            "which needs a decoder's cache; use the backend `torch`"
        )
    known = inspect.signature(model.forward).parameters
    return [name for name in graphs.INPUTS if name in known]


def _example(model: PreTrainedModel, names: Sequence[str], rows: int, length: int) -> dict[str, torch.Tensor]:
    """Random ids, the last row padded on the right."""
    length = min(length, position_limit(model) or length)
    pad = model.config.pad_token_id or 0
    high = min(model.config.vocab_size, 1000)
    ids = torch.randint(min(pad + 1, high - 1), high, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    ids[-1, length // 2 :] = pad
    return dict(_completed({"input_ids": ids, "attention_mask": mask}, names))


@torch.no_grad()
def _outputs(twin: PreTrainedModel, example: dict[str, torch.Tensor]) -> tuple[dict[str, Any], list[str], str]:
    """Further arguments of the forward, the names of its tensors, and the name of its output class."""
    known = inspect.signature(twin.forward).parameters
    options = {"use_cache": False} if "use_cache" in known else {}
    found = twin(**example, **options)
    return options, [name for name, value in found.items() if torch.is_tensor(value)], type(found).__name__


@torch.no_grad()
def _check(
    graph: Any, twin: PreTrainedModel, example: dict[str, torch.Tensor], outputs: list[str], options: dict[str, Any]
) -> None:
    """Raise UnsupportedModelError where the float graph does not compute what the model does, at another shape.

    A trace that has taken a shape or a branch for constant is found here.
    """
    expected = twin(**example, **options)
    request = compile_graph(graph, 1, exact=True).create_infer_request()
    request.infer({name: tensor.numpy() for name, tensor in example.items()})
    kept = example["attention_mask"].bool()
    for name in outputs:
        found, wanted = torch.from_numpy(request.get_tensor(name).data.copy()), expected[name].float()
        if found.shape == wanted.shape and wanted.shape[:2] == kept.shape:
            found, wanted = found[kept], wanted[kept]
        if found.shape != wanted.shape or float((found - wanted).abs().max()) > _TOLERANCE * (
            1 + float(wanted.abs().max())
        ):
            raise UnsupportedModelError(
                f"OpenVINO's graph of {type(twin).__name__} computes another {name} than the model; "
                "use the backend `torch`"
            )
