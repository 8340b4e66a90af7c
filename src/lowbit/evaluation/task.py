"""Evaluation of a stored model on a task."""

from __future__ import annotations

from pathlib import Path

from lowbit.adapter import adapter_folder, check_classifier, load, task_fields
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.data import TaskData
from lowbit.errors import DataError
from lowbit.loop import Progress, check_sizes
from lowbit.scoring import score_model


def evaluate(
    model: str | Path,
    data: TaskData,
    *,
    adapter: str | Path | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The task's metrics of a model directory (with an adapter, if given) by evaluation set.

    ``max_length`` defaults to what the adapter was trained with, else 128 tokens. A task without evaluation rows, or
    with another label set than the model's, raises :class:`DataError`, a model without a classification head
    :class:`UnsupportedModelError`.
    """
    if not data.evaluations:
        raise DataError(f"task {data.name!r} has no evaluation rows; give an evaluation file")
    check_sizes(batch_size, max_length)
    folder = checkpoint_folder(model)
    adapter = None if adapter is None else adapter_folder(adapter)
    loaded = load(folder, adapter)
    check_classifier(loaded, model)
    task = task_fields(loaded, adapter)
    names = task.get("label_names")
    if names is not None and data.label_names is not None and tuple(names) != data.label_names:
        raise DataError(
            f"the model was trained on the labels {list(names)}, the data has {list(data.label_names)}; "
            "give rows of the task it was tuned for, with the same label names"
        )
    length = max_length or task.get("max_length", 128)
    return score_model(
        loaded, load_tokenizer(folder), data, max_length=length, batch_size=batch_size, progress=progress
    )
