"""``tune``: stage 2 and the two baselines that it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedModel

from lowbit.adapter import AdapterInfo, adapter_target, load, model_fingerprint, record_scores, write_adapter
from lowbit.arch import relative_name
from lowbit.checkpoint import (
    atomic_directory,
    checkpoint_folder,
    copy_side_files,
    hub_id,
    load_tokenizer,
    quiet_transformers,
    refuse_existing,
)
from lowbit.data import TaskData, TextData
from lowbit.errors import AdapterError, SchemeError
from lowbit.hf import LowbitConfig, attach, save
from lowbit.loop import Progress
from lowbit.quantize import quantize_model
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
from lowbit.tuning.tasks import task_of


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

    ``outliers`` (PreQuant's stage 2): ``model`` is a backbone, the result a task adapter. ``full``: ordinary
    fine-tuning of a float model, the result a float model. ``ptq``: the same, then quantized by ``options.recipe``.
    The metrics are those of the result as it was written and loaded again.

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
    folder = checkpoint_folder(model)
    tokenizer = load_tokenizer(folder)
    task = task_of(data)
    features, held_out = task.rows(tokenizer, options)
    tuned = task.load(folder, options.seed)
    if _is_quantized(tuned) != (method == "outliers"):
        hint = "quantize it first with `lowbit quantize`" if method == "outliers" else "give the float model"
        raise AdapterError(f"method {method!r} cannot start from {model}: {hint}")
    weights = linear_weights(tuned)
    fingerprint = model_fingerprint(tuned) if method == "outliers" else None
    names = _trained_names(tuned, method, options)
    trained = {group: sum(adapter_target(tuned, n).numel() for n in found) for group, found in names.items()}
    from lowbit.tuning.trainer import train  # here: transformers' Trainer takes seconds to import

    saved = SavedRun(output, {"method": method, **options.to_dict(), "recipe": options.recipe.to_dict()})
    run = train(
        tuned,
        features,
        _parameter_groups(tuned, names, options),
        options,
        collate=DataCollatorWithPadding(tokenizer),
        items=task.items,
        held_out=held_out,
        saved=saved,
        progress=progress,
    )
    fields = task.fields() | {
        "max_length": options.max_length,
        "trained": trained,
        "options": options.to_dict(),
    }

    def deliver() -> dict[str, dict[str, float]]:
        """Write the result, load it again and score it; an adapter records its scores."""
        if fingerprint is not None:
            finish(tuned)
            tensors = {n: adapter_target(tuned, n).detach() for found in names.values() for n in found}
            info = AdapterInfo(fingerprint=fingerprint, backbone=hub_id(folder), **fields)
            write_adapter(output, info, tensors)
        else:
            tuned.config.lowbit_task = fields
            _write_model(tuned.cpu(), options, method, folder, output)
        saved.remove()
        result = load(folder, output) if fingerprint is not None else load(output)
        metrics = task.score(result, tokenizer, options, progress)
        if fingerprint is not None:
            record_scores(output, metrics)
        return metrics

    metrics = once(deliver)
    first = next(iter(metrics.values()), {})
    counted = sum(count for group, count in trained.items() if group != "head")
    return TuneResult(
        path=output,
        method=method,
        task=data.name,
        metric=fields["primary"],
        score=first.get(fields["primary"], float("nan")),
        metrics=metrics,
        trained=trained,
        trained_share=counted / weights if method == "outliers" else 1.0,
        seconds=run.seconds,
        rows=len(features),
        steps=run.steps,
    )


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
