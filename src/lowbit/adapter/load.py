"""Loading a model for use: a backbone with an adapter, a merged directory, or a float model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from lowbit.adapter.apply import apply_adapter
from lowbit.adapter.files import adapter_folder, read_info
from lowbit.arch import base_prefix, drop_pooler, is_head
from lowbit.checkpoint import (
    check_readable,
    checkpoint_folder,
    load_tokenizer,
    own_class,
    quiet_transformers,
    read_config,
)
from lowbit.errors import CheckpointError, UnsupportedModelError
from lowbit.hf import is_causal, language_kind
from lowbit.loop import isolated_rng


def load(model: str | Path, adapter: str | Path | None = None) -> PreTrainedModel:
    """Load a model in eval mode.

    With an ``adapter`` the task class (a classifier or a causal language model), number of labels and label names come
    from the adapter; without one the class is the one that ``config.json`` names. Both are folders or hub ids. Raises
    CheckpointError for damaged files and AdapterError for an adapter that does not belong to this backbone.
    """
    folder = checkpoint_folder(model)
    if adapter is None:
        return _load_own_class(folder)
    adapter = adapter_folder(adapter)
    info = read_info(adapter)
    if info.is_language_model:
        loaded, fresh = load_causal_lm(folder), set[str]()
    else:
        loaded, fresh = load_classifier(folder, info.label_names, seed=0)
    apply_adapter(loaded, adapter)
    missing = fresh - _active_names(loaded)
    if missing:
        raise CheckpointError(f"neither backbone nor adapter holds {sorted(missing)[:3]}; tune again")
    return loaded.eval()


def task_fields(model: PreTrainedModel, adapter: str | Path | None) -> dict[str, Any]:
    """The fields of AdapterInfo that a loaded model goes by: its adapter's, else those it was merged with."""
    if adapter is not None:
        return read_info(adapter).to_dict()
    return getattr(model.config, "lowbit_task", None) or {}


def load_classifier(
    folder: Path, label_names: tuple[str, ...] | None, *, seed: int, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, set[str]]:
    """A sequence classifier (one output for regression) and the names of its freshly initialised parameters.

    The fresh head depends on ``seed`` only; the caller's random states are left alone. ``dtype`` is that of the float
    parameters, by default the checkpoint's own. A folder that lacks more than head and pooler, or whose head has
    another number of outputs, raises CheckpointError.
    """
    outputs = 1 if label_names is None else len(label_names)
    names = dict(enumerate(label_names)) if label_names is not None else {0: "LABEL_0"}
    settings: dict[str, Any] = {
        "num_labels": outputs,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": "regression" if label_names is None else "single_label_classification",
    }
    settings |= {"dtype": dtype, "ignore_mismatched_sizes": True}
    loaded, report = _from_pretrained(AutoModelForSequenceClassification, folder, seed, **settings)
    for name, stored, needed in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: {name!r} is {list(stored)}, {outputs} outputs need {list(needed)}; "
            "start from the model without a task head"
        )
    for name in sorted(report["missing_keys"]):
        if not is_head(loaded, name.rpartition(".")[0]):
            raise CheckpointError(f"{folder} lacks {name!r} of a {type(loaded).__name__}; start from a whole model")
    # GPT-2 and OPT classify at the last token that is no padding, and the former's configuration names none.
    loaded.config.pad_token_id = load_tokenizer(folder).pad_token_id
    return loaded, set(report["missing_keys"])


def load_causal_lm(folder: Path, *, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A causal language model; ``dtype`` as in :func:`load_classifier`.

    A model that is not one by itself raises UnsupportedModelError: an encoder sees the tokens it should predict.
    """
    config = read_config(folder)
    if not is_causal(config):
        raise UnsupportedModelError(f"{folder} holds a {config.model_type!r}, which is no causal language model")
    loaded, report = _from_pretrained(AutoModelForCausalLM, folder, 0, dtype=dtype)
    _refuse_missing(folder, report)
    return loaded


def check_classifier(model: PreTrainedModel, source: str | Path) -> None:
    """Raise UnsupportedModelError where the model loaded from ``source`` predicts no labels."""
    if "SequenceClassification" in type(model).__name__:
        return
    measured = "; `lowbit evaluate --perplexity` measures a language model" if language_kind(model) else ""
    raise UnsupportedModelError(f"{source} has no classification head; give the adapter of a task{measured}")


def _load_own_class(folder: Path) -> PreTrainedModel:
    loaded, report = _from_pretrained(own_class(read_config(folder)), folder, seed=0)
    drop_pooler(loaded, loaded.state_dict().keys() - report["missing_keys"])
    report["missing_keys"] &= loaded.state_dict().keys()
    _refuse_missing(folder, report)
    return loaded.eval()


def _refuse_missing(folder: Path, report: dict[str, Any]) -> None:
    if report["missing_keys"]:
        raise CheckpointError(f"{folder} lacks {sorted(report['missing_keys'])[:3]}; the checkpoint is incomplete")


def _from_pretrained(
    model_class: Any, folder: Path, seed: int, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and the report on its loading; files that cannot be read raise CheckpointError."""
    read_config(folder)
    check_readable(folder)
    try:
        with isolated_rng(seed), quiet_transformers():
            return model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error


def _active_names(model: PreTrainedModel) -> set[str]:
    """Names inside ``model`` of the tensors that the active adapter holds."""
    replaced = model.lowbit_adapter.replaced
    return set(replaced) | {base_prefix(model) + name for name in replaced}
