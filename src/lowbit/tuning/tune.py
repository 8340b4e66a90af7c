"""``tune``: stage 2 and the baselines that it is compared with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedModel

from lowbit.adapter import is_adapter, record_scores
from lowbit.checkpoint import checkpoint_folder, hub_id, load_tokenizer, refuse_existing
from lowbit.data import TaskData, TextData
from lowbit.errors import AdapterError, SchemeError
from lowbit.hf import is_quantized
from lowbit.loop import Progress, SavedRun, default_device, model_digest, once, use_bf16
from lowbit.tuning.batches import plan_batches
from lowbit.tuning.distill import distillation, label_loss
from lowbit.tuning.methods import METHODS, Prepared, check_options
from lowbit.tuning.options import TuneOptions, TuneResult
from lowbit.tuning.prepare import linear_weights
from lowbit.tuning.tasks import LabelTask, TextTask, task_of


def tune(
    model: str | Path,
    output: str | Path,
    data: TaskData | TextData,
    *,
    method: str = "outliers",
    options: TuneOptions | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Fine-tune for one task and write the result to a new directory.

    ``outliers`` (PreQuant's stage 2): ``model`` is a backbone, the result a task adapter. ``random``, ``scales`` and
    ``bitfit`` do the same with random positions, with step sizes only and with biases only. ``lora`` trains low-rank
    factors beside the backbone's linears, ``loftq`` from ``options.float_model``; both need the library peft, and their
    adapters cannot be merged. ``full``: ordinary fine-tuning of a float model, the result a float model. ``ptq``: the
    same, then quantized by ``options.recipe``. ``qat``: fine-tuning through the rounding, the result a quantized model
    by the same recipe. The metrics are those of the result as it was written and loaded again.

    :class:`lowbit.data.TextData` tunes a causal language model on plain text, cut into blocks of ``max_length`` tokens
    (what is left over is dropped); ``outliers`` leaves embeddings and output projection frozen. The metrics are those
    of :func:`lowbit.perplexity` in windows of ``max_length``.

    A run that was stopped leaves ``.NAME.checkpoint`` beside the output NAME once it has saved its state; the same call
    goes on from there and gives the same bytes. A checkpoint of another run raises :class:`CheckpointError`. Under
    ``torchrun`` or ``accelerate launch`` the processes share each batch, and all of them get the result.
    """
    if method not in METHODS:
        raise SchemeError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    output = refuse_existing(output)
    options = options or TuneOptions()
    check_options(method, METHODS[method], options)
    if METHODS[method].from_backbone and options.dropout is None:
        options = dataclasses.replace(options, dropout=0.0)  # few values reach more without it, and it costs time
    folder = checkpoint_folder(model)
    tokenizer = load_tokenizer(folder)
    task = task_of(data)
    features, held_out = task.rows(tokenizer, options)
    tuned = task.load(folder, options.seed)
    if is_quantized(tuned) != METHODS[method].from_backbone:
        hint = "give the float model" if is_quantized(tuned) else "quantize it first with `lowbit quantize`"
        raise AdapterError(f"method {method!r} cannot start from {model}: {hint}")
    bf16 = use_bf16(options.precision, default_device(), tuned)
    _check_cache(options, "bf16" if bf16 else "fp32")
    weights = linear_weights(tuned)
    collate = DataCollatorWithPadding(tokenizer)
    run = METHODS[method](tuned, folder, options)

    def first_batch() -> Any:
        return collate([features[row] for row in plan_batches(features, options.batch_size, 1, options.seed)[0]])

    teacher = _teacher(task, options, tokenizer, tuned) if options.teacher else None
    prepared = run.prepare(first_batch)
    from lowbit.tuning.trainer import train  # here: transformers' Trainer takes seconds to import

    facts = {
        "method": method,
        **options.to_dict(),
        "recipe": options.recipe.to_dict(),
        "bf16": bf16,
        "teacher": model_digest(teacher) if teacher else None,
    }
    saved = SavedRun(output, facts)
    done = train(
        prepared.model,
        features,
        prepared.groups,
        options,
        collate=collate,
        items=task.items,
        loss=distillation(teacher) if teacher else label_loss,
        held_out=held_out,
        saved=saved,
        progress=progress,
    )
    fields = task.fields() | {
        "max_length": options.max_length,
        "trained": prepared.trained,
        "options": _record(method, run.options, prepared),
    }

    def deliver() -> dict[str, dict[str, float]]:
        """Write the result, load it again and score it; an adapter records its scores."""
        run.write(output, fields)
        saved.remove()
        metrics = task.score(run.load(output), tokenizer, options, progress)
        if is_adapter(output):
            record_scores(output, metrics)
        return metrics

    metrics = once(deliver)
    first = next(iter(metrics.values()), {})
    counted = sum(count for group, count in prepared.trained.items() if group != "head")
    return TuneResult(
        path=output,
        method=method,
        task=data.name,
        metric=fields["primary"],
        score=first.get(fields["primary"], float("nan")),
        metrics=metrics,
        trained=prepared.trained,
        trained_share=min(1.0, counted / weights),
        seconds=done.seconds,
        rows=len(features),
        steps=done.steps,
    )


def _record(method: str, options: TuneOptions, prepared: Prepared) -> dict[str, Any]:
    """What a result says of how it was made; models go by their names on the hub, if they have some, not by paths."""
    named = {
        name: None if folder is None else hub_id(checkpoint_folder(folder))
        for name, folder in (("teacher", options.teacher), ("float_model", options.float_model))
    }
    rates = sorted({group["lr"] for group in prepared.groups})
    return {"method": method, **options.to_dict(), **named, "learning_rates": rates}


def _check_cache(options: TuneOptions, precision: str) -> None:
    """Refuse decoded weights in another precision than that of the run, which could not use them."""
    if options.cache not in ("none", precision):
        raise SchemeError(
            f"a {options.cache} cache belongs to a {options.cache} run, this one is in {precision}; "
            f"use --cache {precision}, or --precision {options.cache}"
        )


def _teacher(
    task: LabelTask | TextTask, options: TuneOptions, tokenizer: Any, student: PreTrainedModel
) -> PreTrainedModel:
    """The float model to learn from; one of other tokens or another width raises AdapterError."""
    assert options.teacher is not None
    folder = checkpoint_folder(options.teacher)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise AdapterError(f"the teacher {folder} reads other tokens than the model; give one with the same tokenizer")
    teacher = task.teacher(folder)
    widths = [model.config.hidden_size for model in (teacher, student)]
    if widths[0] != widths[1]:
        raise AdapterError(
            f"the teacher {folder} has hidden states of width {widths[0]}, the model of {widths[1]}; "
            "give one of the same width"
        )
    return teacher
