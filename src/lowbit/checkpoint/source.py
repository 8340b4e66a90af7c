"""Reading a float checkpoint tensor by tensor, under the names that the model class gives its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lowbit.arch import get_architecture, tied_modules
from lowbit.errors import CheckpointError, UnsupportedModelError

_INDEX_FILE = "model.safetensors.index.json"
_WEIGHTS_FILE = "model.safetensors"
_LEGACY_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model folder; a missing, broken or already quantized one raises CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {folder} is not a model folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    get_architecture(values.get("model_type", "unknown"))
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model class that the configuration names, without memory for its weights."""
    names = config.architectures or []
    model_class = getattr(transformers, names[0], None) if names else None
    if model_class is None:
        raise UnsupportedModelError(f"config.json names no known model class: architectures = {names}")
    with torch.device("meta"):
        model: PreTrainedModel = model_class(config)
    return model


class SourceCheckpoint:
    """Tensors of a safetensors checkpoint by the model's own parameter names."""

    def __init__(self, folder: Path, model: PreTrainedModel, stack: ExitStack) -> None:
        self._files: dict[str, Any] = {}
        self._places: dict[str, tuple[str, str]] = {}
        expected = _expected_names(model)
        prefix = f"{model.base_model_prefix}."
        for file, keys in _shards(folder).items():
            try:
                handle = stack.enter_context(safe_open(folder / file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{folder / file} cannot be read: {error}; fetch the file again") from error
            stored = set(handle.keys())
            for key in keys if keys is not None else sorted(stored):
                if key not in stored:
                    raise CheckpointError(f"{folder / file} lacks tensor {key!r} that the index lists")
                name = _model_name(key, prefix, expected)
                if name is not None:
                    self._places[name] = (file, key)
            self._files[file] = handle
        for name in expected:
            if name not in self._places:
                raise CheckpointError(
                    f"{folder} has no tensor for {name!r} of {type(model).__name__}; the checkpoint is incomplete"
                )
        self.names = list(expected)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, mapped from the file where possible."""
        file, key = self._places[name]
        loaded: torch.Tensor = self._files[file].get_tensor(key)
        return loaded

    def dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor, which is taken as the checkpoint's own."""
        return next(t.dtype for t in map(self.tensor, self.names) if t.is_floating_point())


@contextmanager
def open_source(folder: Path, model: PreTrainedModel) -> Iterator[SourceCheckpoint]:
    """Open the checkpoint in ``folder`` for a model (on the meta device); missing or broken files raise."""
    with ExitStack() as stack:
        yield SourceCheckpoint(folder, model, stack)


def _expected_names(model: PreTrainedModel) -> dict[str, None]:
    """Parameter names that a checkpoint of this model must hold: all but the tied ones."""
    tied = set(model.all_tied_weights_keys) | {f"{path}.weight" for path in tied_modules(model)}
    return dict.fromkeys(name for name in model.state_dict() if name not in tied)


def _model_name(key: str, prefix: str, expected: dict[str, None]) -> str | None:
    """The model's name of a stored key: with or without the base prefix, old norm endings renamed."""
    for old, new in _LEGACY_ENDINGS.items():
        if key.endswith(old):
            key = key.removesuffix(old) + new
    candidates = (key, prefix + key, key.removeprefix(prefix))
    return next((name for name in candidates if name in expected), None)


def _shards(folder: Path) -> dict[str, list[str] | None]:
    """Weight files of a folder with the keys that the index gives them; None means all keys of a single file."""
    index = folder / _INDEX_FILE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{index} is damaged: {error}") from error
        files: dict[str, list[str] | None] = {}
        for key, file in weight_map.items():
            keys = files.setdefault(file, [])
            assert keys is not None
            keys.append(key)
        return files
    if not (folder / _WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} has no {_WEIGHTS_FILE}; save the model as safetensors first")
    return {_WEIGHTS_FILE: None}
