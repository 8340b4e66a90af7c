"""Predictions on text, streamed in input order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import adapter_folder, check_classifier, load, task_fields
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.data import Examples, encode
from lowbit.loop import check_sizes, default_device, predict_logits
from lowbit.nn import QuantModule
from lowbit.runtime.latency import static_path
from lowbit.runtime.prepare import prepare

_AHEAD = 2048  # rows read ahead, within which they are sorted by length

Text = str | tuple[str, str]


def predict(
    model: str | Path,
    texts: Iterable[Text],
    *,
    adapter: str | Path | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One result a text, or pair of texts, in input order; input may be longer than memory.

    Classification gives ``label``, ``score`` and ``probabilities`` by label; regression gives ``value``. A model
    without a classification head raises :class:`UnsupportedModelError`. On a CPU a backbone runs in the latency layout
    of :func:`lowbit.runtime.prepare`, one with static activations in that for little memory. Rows of
    similar length are run together, by default as many as have about 1,024 tokens, else ``batch_size``.
    """
    check_sizes(batch_size, max_length)
    folder = checkpoint_folder(model)
    adapter = None if adapter is None else adapter_folder(adapter)
    loaded = load(folder, adapter)
    check_classifier(loaded, model)
    loaded = _fastest(loaded.to(default_device()))
    length = max_length or task_fields(loaded, adapter).get("max_length", 128)
    return _stream(loaded, load_tokenizer(folder), texts, batch_size, length)


def _fastest(model: PreTrainedModel) -> PreTrainedModel:
    """A backbone on the CPU in its int8 layout; what has none, float weights or low-rank factors, as it is.

    Steps of inputs that are stored are used in the layout for little memory only.
    """
    quantized = any(isinstance(module, QuantModule) for module in model.modules())
    if not quantized or model.device.type != "cpu" or getattr(model, "peft_config", None):
        return model
    return prepare(model, backend="torch") if static_path(model) is None else prepare(model, mode="memory")


def _stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    batch_size: int | None,
    length: int,
) -> Iterator[dict[str, Any]]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, _AHEAD)):
        features = encode(_examples(chunk), tokenizer, length)
        # What an execution layout leaves in float is little, and bfloat16 would show in the probabilities.
        precision = "fp32" if hasattr(model, "lowbit_runtime") else "auto"
        logits = predict_logits(model, tokenizer, features, batch_size=batch_size, precision=precision)
        if model.config.problem_type == "regression" or logits.shape[1] == 1:
            yield from ({"value": float(value)} for value in logits[:, 0])
            continue
        names = [model.config.id2label[index] for index in range(logits.shape[1])]
        for row in logits.softmax(dim=1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            yield {"label": names[best], "score": row[best], "probabilities": dict(zip(names, row, strict=True))}


def _examples(chunk: list[Text]) -> Examples:
    pairs = [text if isinstance(text, tuple) else (text, None) for text in chunk]
    seconds = [second for _, second in pairs if second is not None]
    return Examples([first for first, _ in pairs], seconds or None, None, None, "input")
