"""``tune``: stage 2 and the two baselines that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import (
    AdapterInfo,
    adapter_target,
    load,
    load_classifier,
    model_fingerprint,
    record_scores,
    write_adapter,
)
from lowbit.checkpoint import atomic_directory, checkpoint_folder, copy_side_files, hub_id, refuse_existing
from lowbit.data import TaskData, encode
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

Features = Sequence[dict[str, Any]]


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
    """
    if method not in METHODS:
        raise SchemeError(f"unknown method {method!r}; use one of {', '.join(METHODS)}")
    refuse_existing(output)
    options = options or TuneOptions()
    folder = checkpoint_folder(model)
    tokenizer = load_tokenizer(folder)
    features = encode(data.training_rows(), tokenizer, options.max_length)
    check_metrics(data)
    classifier, _ = load_classifier(folder, data.label_names, seed=options.seed, dtype=torch.float32)
    if _is_quantized(classifier) != (method == "outliers"):
        hint = "quantize it first with `lowbit quantize`" if method == "outliers" else "give the float model"
        raise AdapterError(f"method {method!r} cannot start from {model}: {hint}")
    weights, parameters = linear_weights(classifier), classifier.num_parameters()
    if method == "outliers":
        trained, seconds = _tune_outliers(
            classifier, tokenizer, features, data, options, hub_id(folder), Path(output), progress
        )
        share = sum(count for group, count in trained.items() if group != "head") / weights
        result = load(folder, output)
    else:
        trained, seconds = _tune_all(classifier, tokenizer, features, options, method, folder, Path(output), progress)
        share = trained["all"] / parameters
        result = load(output)
    metrics = score_model(
        result, tokenizer, data, max_length=options.max_length, precision=options.precision, progress=progress
    )
    if method == "outliers":
        record_scores(output, metrics)
    first = next(iter(metrics.values()), {})
    return TuneResult(
        path=Path(output),
        method=method,
        task=data.name,
        metric=data.primary,
        score=first.get(data.primary, float("nan")),
        metrics=metrics,
        trained=trained,
        trained_share=share,
        seconds=seconds,
        rows=len(features),
    )


def _tune_outliers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    data: TaskData,
    options: TuneOptions,
    backbone: str | None,
    output: Path,
    progress: Progress | None,
) -> tuple[dict[str, int], float]:
    """Train outliers and head, write the adapter; returns trained counts by group and seconds."""
    from lowbit.tuning.trainer import train  # here: transformers' Trainer takes seconds to import

    fingerprint = model_fingerprint(model)
    names = prepare(model, norms=options.norms, biases=options.biases, scales=options.scales)
    trained = {group: sum(adapter_target(model, n).numel() for n in found) for group, found in names.items()}
    rest = [name for group, found in names.items() if group != "outliers" for name in found]
    groups = [
        {
            "params": [adapter_target(model, name) for name in names["outliers"]],
            "lr": options.learning_rate or OUTLIER_LEARNING_RATE,
        },
        {
            "params": [adapter_target(model, name) for name in rest],
            "lr": options.head_learning_rate or REST_LEARNING_RATE,
        },
    ]
    seconds = train(model, tokenizer, features, groups, options, progress)
    finish(model)
    info = AdapterInfo(
        fingerprint=fingerprint,
        task=data.name,
        metrics=data.metrics,
        primary=data.primary,
        label_names=data.label_names,
        max_length=options.max_length,
        trained=trained,
        options=options.to_dict(),
        backbone=backbone,
    )
    write_adapter(output, info, {n: adapter_target(model, n).detach() for found in names.values() for n in found})
    return trained, seconds


def _tune_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    features: Features,
    options: TuneOptions,
    method: str,
    folder: Path,
    output: Path,
    progress: Progress | None,
) -> tuple[dict[str, int], float]:
    """Train every weight and write the model, quantized for ``ptq``; returns trained counts and seconds."""
    from lowbit.tuning.trainer import train  # here: transformers' Trainer takes seconds to import

    trained = {"all": sum(parameter.numel() for parameter in model.parameters())}
    groups = [{"params": list(model.parameters()), "lr": options.learning_rate or FULL_LEARNING_RATE}]
    seconds = train(model, tokenizer, features, groups, options, progress)
    model.cpu()
    if method == "ptq":
        plan = quantize_model(model, options.recipe, seed=options.seed)
        attach(model, LowbitConfig.from_plan(plan))
        save(model, output, source=folder)
        return trained, seconds
    with atomic_directory(output) as partial, quiet_transformers():
        model.save_pretrained(partial)
        copy_side_files(folder, partial)
    return trained, seconds


def _is_quantized(model: PreTrainedModel) -> bool:
    return isinstance(getattr(model.config, "quantization_config", None), LowbitConfig)
