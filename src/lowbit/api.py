"""The public functions: one for each verb of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.calibration import Text
from lowbit.errors import SchemeError
from lowbit.hf import LowbitConfig, attach
from lowbit.plan import Plan
from lowbit.quantize import Progress, Quantized, plan_checkpoint, plan_model, quantize_checkpoint, quantize_model
from lowbit.recipe import Recipe
from lowbit.scheme import Scheme

RecipeLike = str | Path | Mapping[str, Any] | Scheme | Recipe


def plan(model: str | Path | PreTrainedModel, recipe: RecipeLike = "w4", *, progress: Progress | None = None) -> Plan:
    """What quantizing would do to each module, and why; nothing is written.

    ``model`` is a folder, a hub id or a loaded model; ``recipe`` a scheme's short form, a recipe file, mapping or
    value. A budget for the whole model takes a pass over the weights, ``target_bits`` some runs of the model;
    ``progress(done, total, name)`` is called on the way.
    """
    parsed = Recipe.parse(recipe)
    plan_it = plan_model if isinstance(model, PreTrainedModel) else plan_checkpoint
    return plan_it(model, parsed, progress)


def quantize(
    model: str | Path | PreTrainedModel,
    recipe: RecipeLike = "w4",
    *,
    output: str | Path | None = None,
    texts: Sequence[Text] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quantized | Plan:
    """Stage 1, without data.

    A folder or hub id is streamed into the new directory ``output``, tensor by tensor. A loaded model is quantized in
    place and its plan returned; ``lowbit.save(model, output)`` writes it. The strategy ``gptq`` and static
    activations run the float model on generated inputs, or on ``texts``, or pairs of texts, where they are given.
    """
    parsed = Recipe.parse(recipe)
    if not isinstance(model, PreTrainedModel):
        if output is None:
            raise SchemeError("give `output`, the directory to write the backbone to")
        return quantize_checkpoint(model, parsed, output, texts=texts, seed=seed, progress=progress)
    if output is not None:
        raise SchemeError("a loaded model is quantized in place; write it with `lowbit.save(model, output)`")
    found = quantize_model(model, parsed, texts=texts, seed=seed)
    attach(model, LowbitConfig.from_plan(found))
    return found
