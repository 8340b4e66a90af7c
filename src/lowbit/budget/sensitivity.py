"""How much a model's output changes when one of its matrices alone is quantized, measured without data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from lowbit.arch import find_module, float_weight
from lowbit.budget.bits import WIDTHS
from lowbit.calibration import evaluating
from lowbit.errors import WeightError, naming
from lowbit.plan import Plan, PlanEntry
from lowbit.qtensor import quantize_with_error
from lowbit.scheme import Scheme
from lowbit.strategies import grid_scheme

_MEASURED = (2, 3)
_TEXTS, _TOKENS = 32, 16
_ROWS = 128

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def output_changes(model: PreTrainedModel, plan: Plan, progress: Progress | None = None) -> dict[str, dict[int, float]]:
    """By module and width: what the module alone does to the output, for the modules whose width is to be chosen.

    It is the squared change of the base model's last hidden states over their squares, on 32 texts of 16 random
    tokens, with the matrix at 2 and at 3 bits: one that bears 3 bits well may not bear 2. From 3 bits on the change is
    taken to go with the squared weight error, which is measured on a sample of rows. Weight errors alone would not do:
    relative to the matrix they are nearly the same everywhere. Numbers are rounded to three digits, so that the number
    of threads does not show. A NaN or infinite weight raises :class:`WeightError`. (Own.)
    """
    entries = [entry for entry in plan.quantized if plan.recipe.chooses_bits(entry.name, entry.kind)]
    changes: dict[str, dict[int, float]] = {}
    with evaluating(model):
        inputs = _inputs(model)
        reference = _output(model, inputs)
        energy = float(reference.square().sum())
        if not math.isfinite(energy):
            raise WeightError("the model's output on random tokens is NaN or infinite; repair the checkpoint first")
        for done, entry in enumerate(entries):
            if progress is not None:
                progress(done, len(entries), entry.name)
            found = {
                bits: float((_quantized_output(model, entry, bits, inputs) - reference).square().sum()) / energy
                for bits in _MEASURED
            }
            changes[entry.name] = {bits: float(f"{value:.3g}") for bits, value in _all_widths(model, entry, found)}
    return changes


def _all_widths(model: PreTrainedModel, entry: PlanEntry, found: dict[int, float]) -> Iterator[tuple[int, float]]:
    """The measured changes, and those of the larger widths by their weight errors."""
    module = _module(model, entry)
    weight = float_weight(module, module.weight.data)  # type: ignore[arg-type]
    sample = weight[:: max(1, weight.shape[0] // _ROWS)]
    last = _MEASURED[-1]
    errors = {bits: quantize_with_error(sample, _scheme(entry, bits))[1] for bits in WIDTHS if bits >= last}
    for bits in WIDTHS:
        if bits <= last:
            yield bits, found[bits]
        else:
            yield bits, found[last] * (errors[bits] / errors[last]) ** 2 if errors[last] else 0.0


def _quantized_output(
    model: PreTrainedModel, entry: PlanEntry, bits: int, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The output with one matrix quantized; the model is as before afterwards."""
    module = _module(model, entry)
    parameter = module.weight
    assert isinstance(parameter, torch.Tensor)
    stored = parameter.data
    with naming(entry.name):
        tensor, _ = quantize_with_error(float_weight(module, stored), _scheme(entry, bits))
    parameter.data = float_weight(module, tensor.dequantize(stored.dtype))
    try:
        return _output(model, inputs)
    finally:
        parameter.data = stored


def _scheme(entry: PlanEntry, bits: int) -> Scheme:
    """The scheme in another width, of the weight alone; a strategy that needs a Hessian is stood in for."""
    assert entry.scheme is not None
    return replace(grid_scheme(entry.scheme.with_bits(bits)), activations="float")


def _module(model: PreTrainedModel, entry: PlanEntry) -> torch.nn.Module:
    path = find_module(model, entry.name)
    assert path is not None
    return model.get_submodule(path)


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Ids drawn evenly from the whole vocabulary, [texts, tokens], the same for every model of a vocabulary."""
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(words, (_TEXTS, _TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "decoder_input_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["decoder_input_ids"] = ids.flip(0)
    return inputs


def _output(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last hidden states of the base model, float32."""
    hidden: torch.Tensor = model.base_model(**inputs)[0]
    return hidden.float()
