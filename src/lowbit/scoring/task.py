"""Metrics of a loaded model on a task's evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.data import TaskData, encode
from lowbit.errors import DataError
from lowbit.loop import Progress, default_device, isolated_rng, predict_logits
from lowbit.metrics import score


def score_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    max_length: int = 128,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The task's metrics by evaluation set; the model is moved to the default device.

    A model whose number of outputs does not fit the task raises :class:`DataError`.
    """
    if model.config.num_labels != data.outputs:
        raise DataError(f"task {data.name!r} needs {data.outputs} outputs, the model has {model.config.num_labels}")
    model.to(default_device())
    scores = {}
    for split, examples in data.evaluations.items():
        assert examples.labels is not None
        features = encode(examples, tokenizer, max_length)
        logits = predict_logits(
            model, tokenizer, features, batch_size=batch_size, precision=precision, progress=progress
        )
        scores[split] = _score(data, decide(logits, data.label_names is None).tolist(), examples.labels)
    return scores


def check_metrics(data: TaskData) -> None:
    """Raise what scoring would raise, a missing library or an unknown metric, before an hour of training."""
    for examples in data.evaluations.values():
        assert examples.labels is not None
        _score(data, examples.labels, examples.labels)


def _score(data: TaskData, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    with isolated_rng(0):  # importing scikit-learn, which happens on first use, draws from ``random``
        return score(data.metrics, predictions, labels)


def decide(logits: torch.Tensor, regression: bool) -> torch.Tensor:
    """Predictions [rows] of logits [rows, outputs]: the value itself, or the index of the largest."""
    return logits[:, 0] if regression else logits.argmax(dim=1)
