"""``tune``: stage 2 and the two baselines that it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel

from lowbit.adapter import (
    AdapterInfo,
    adapter_target,
    load,
    load_classifier,
    model_fingerprint,
    record_scores,
    write_adapter,
)
from lowbit.arch import relative_name
from lowbit.checkpoint import atomic_directory, checkpoint_folder, copy_side_files, hub_id, refuse_existing
from lowbit.data import Examples, TaskData, encode
from lowbit.errors import AdapterError, SchemeError
from lowbit.hf import LowbitConfig, attach, save
from lowbit.loop import Progress, load_tokenizer, quiet_transformers
from lowbit.quantize import quantize_model
from lowbit.scoring import check_metrics, score_model
from lowbit.tuning.options import (
    FULL_LEARNING_RATE,
    METHODS,
    OUTLIER_LEARNING_RATE,
    REST_LEARNING_RATE,
    TuneOptions,
    TuneResult,
)
from lowbit.tuning.prepare import finish, linear_weights, prepare
from lowbit.tuning.processes import once
from lowbit.tuning.saved import SavedRun


def tune(
    model: str | Path,
    output: str | Path,
    data: TaskData,
    *,
    method: str = "outliers",
    options: TuneOptions | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Fine-tune for one task and write the result to a new directory.

    ``outliers`` (PreQuant's stage 2): ``model`` is a backbone, the result a task adapter. ``full``: ordinary
    fine-tuning of a float model, the result a float model. ``ptq``: the same, then quantized by ``options.recipe``.
    The metrics are those of the result as it was written and loaded again.

    A run that was stopped leaves ``.NAME.checkpoint`` beside the output NAME once it has saved its state; the same call
    goes on from there and gives the same bytes. A checkpoint of another run raises :class:`CheckpointError`. Under
    ``torchrun`` or ``accelerate launch`` the processes share each batch, and all of them get the result.
    """
    if method not in METHODS:
        raise SchemeError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    output = refuse_existing(output)
    options = options or TuneOptions()
    folder = checkpoint_folder(model)
    tokenizer = load_tokenizer(folder)
    rows, held_out = _training_parts(data, options)
    features = encode(rows, tokenizer, options.max_length)
    check_metrics(data)
    classifier, _ = load_classifier(folder, data.label_names, seed=options.seed, dtype=torch.float32)
    if _is_quantized(classifier) != (method == "outliers"):
        hint = "quantize it first with `lowbit quantize`" if method == "outliers" else "give the float model"
        raise AdapterError(f"method {method!r} cannot start from {model}: {hint}")
    weights = linear_weights(classifier)
    fingerprint = model_fingerprint(classifier) if method == "outliers" else None
    names = _trained_names(classifier, method, options)
    trained = {group: sum(adapter_target(classifier, n).numel() for n in found) for group, found in names.items()}
    from lowbit.tuning.trainer import train  # here: transformers' Trainer takes seconds to import

    saved = SavedRun(output, {"method": method, **options.to_dict(), "recipe": options.recipe.to_dict()})
    run = train(
        classifier,
        features,
        _parameter_groups(classifier, names, options),
        options,
        collate=DataCollatorWithPadding(tokenizer),
        held_out=encode(held_out, tokenizer, options.max_length) if held_out is not None else (),
        saved=saved,
        progress=progress,
    )
    task: dict[str, Any] = {
        "task": data.name,
        "metrics": data.metrics,
        "primary": data.primary,
        "label_names": data.label_names,
        "max_length": options.max_length,
        "trained": trained,
        "options": options.to_dict(),
    }

    def deliver() -> dict[str, dict[str, float]]:
        """Write the result, load it again and score it."""
        if fingerprint is not None:
            finish(classifier)
            tensors = {n: adapter_target(classifier, n).detach() for found in names.values() for n in found}
            write_adapter(output, AdapterInfo(fingerprint=fingerprint, backbone=hub_id(folder), **task), tensors)
        else:
            classifier.config.lowbit_task = task
            _write_model(classifier.cpu(), options, method, folder, output)
        saved.remove()
        result = load(folder, output) if fingerprint is not None else load(output)
        scores = score_model(
            result, tokenizer, data, max_length=options.max_length, precision=options.precision, progress=progress
        )
        if fingerprint is not None:
            record_scores(output, scores)
        return scores

    metrics = once(deliver)
    first = next(iter(metrics.values()), {})
    counted = sum(count for group, count in trained.items() if group != "head")
    return TuneResult(
        path=output,
        method=method,
        task=data.name,
        metric=data.primary,
        score=first.get(data.primary, float("nan")),
        metrics=metrics,
        trained=trained,
        trained_share=counted / weights if method == "outliers" else 1.0,
        seconds=run.seconds,
        rows=len(features),
        steps=run.steps,
    )


def _training_parts(data: TaskData, options: TuneOptions) -> tuple[Examples, Examples | None]:
    """The rows to train on and the held-out ones, if any."""
    rows = data.training_rows()
    return rows.split(options.hold_out, options.seed) if options.hold_out else (rows, None)


def _trained_names(model: PreTrainedModel, method: str, options: TuneOptions) -> dict[str, list[str]]:
    """Freeze what is not trained; returns the names of what is, by group."""
    if method == "outliers":
        return prepare(model, norms=options.norms, biases=options.biases, scales=options.scales)
    return {"all": [relative_name(model, name) for name, _ in model.named_parameters()]}


def _parameter_groups(
    model: PreTrainedModel, names: dict[str, list[str]], options: TuneOptions
) -> list[dict[str, Any]]:
    """Parameters with their learning rates: those of the outliers, or of all weights, and the rest."""
    main = "all" if "all" in names else "outliers"
    default = FULL_LEARNING_RATE if main == "all" else OUTLIER_LEARNING_RATE
    rest = [name for group, found in names.items() if group != main for name in found]
    rates = (options.learning_rate or default, options.head_learning_rate or REST_LEARNING_RATE)
    return [
        {"params": [adapter_target(model, name) for name in found], "lr": rate}
        for found, rate in zip((names[main], rest), rates, strict=True)
        if found
    ]


def _write_model(model: PreTrainedModel, options: TuneOptions, method: str, folder: Path, output: Path) -> None:
    """Write a float model, for ``ptq`` quantized."""
    if method == "ptq":
        plan = quantize_model(model, options.recipe, seed=options.seed)
        attach(model, LowbitConfig.from_plan(plan))
        save(model, output, source=folder)
        return
    with atomic_directory(output) as partial, quiet_transformers():
        model.save_pretrained(partial)
        copy_side_files(folder, partial)


def _is_quantized(model: PreTrainedModel) -> bool:
    return isinstance(getattr(model.config, "quantization_config", None), LowbitConfig)
