"""Reading a float checkpoint tensor by tensor, under the names that the model class gives its parameters."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from lowbit.arch import drop_pooler, untie
from lowbit.checkpoint.weightfile import WeightFile, weight_shards
from lowbit.errors import CheckpointError, UnsupportedModelError

_LEGACY_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model folder; a missing or broken one raises CheckpointError.

    A model type that transformers does not know raises UnsupportedModelError.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {folder} is not a model folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(values["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not the configuration of a model: {error!r}") from error
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"{path}: transformers {transformers.__version__} has no model type {model_type!r}")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (StrictDataclassError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def own_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The model class that the configuration names, or else the base model.

    A class that is not of this model type raises UnsupportedModelError.
    """
    names = config.architectures or []
    found = getattr(transformers, names[0], None) if names else MODEL_MAPPING.get(type(config), None)
    if found is None or getattr(found, "config_class", None) is not type(config):
        raise UnsupportedModelError(f"config.json names no {config.model_type} model class: architectures = {names}")
    return found


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration, without memory for its weights; sizes that do not fit raise CheckpointError."""
    model_class = own_class(config)
    try:
        with torch.device("meta"):
            return model_class(config)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"config.json does not describe a {model_class.__name__}: {error!r}") from error


class SourceCheckpoint:
    """Tensors of a float checkpoint by the model's own parameter names."""

    def __init__(self, folder: Path, model: PreTrainedModel, stack: ExitStack) -> None:
        self._files: dict[str, WeightFile] = {}
        self._places: dict[str, tuple[str, str]] = {}
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        prefix = f"{model.base_model_prefix}."
        for file, keys in weight_shards(folder).items():
            opened = WeightFile(folder / file, stack)
            stored = set(opened.keys())
            for key in keys if keys is not None else sorted(stored):
                if key not in stored:
                    raise CheckpointError(f"{folder / file} lacks tensor {key!r} that the index lists")
                name = _model_name(key, prefix, expected)
                if name is not None:
                    self._places[name] = (file, key)
            self._files[file] = opened
        self._follow_ties(model)
        drop_pooler(model, self._places)
        self.names = [name for name in model.state_dict() if name not in model.all_tied_weights_keys]
        for name in self.names:
            if name not in self._places:
                raise CheckpointError(
                    f"{folder} has no tensor for {name!r} of {type(model).__name__}; the checkpoint is incomplete"
                )
            file, key = self._places[name]
            shape = self._files[file].shape(key)
            if shape != expected[name]:
                raise CheckpointError(
                    f"{folder / file}: tensor {key!r} is {list(shape)}, config.json asks for {list(expected[name])}"
                )

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, mapped from the file where possible."""
        file, key = self._places[name]
        return self._files[file].tensor(key)

    def dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor, which is taken as the checkpoint's own."""
        return next(t.dtype for t in map(self.tensor, self.names) if t.is_floating_point())

    def _follow_ties(self, model: PreTrainedModel) -> None:
        """Untie what the checkpoint holds with values of its own; take a tied weight from where it is stored."""
        own = set()
        for target, source in model.all_tied_weights_keys.items():
            if target not in self._places:
                continue
            self._places.setdefault(source, self._places[target])
            if not torch.equal(self.tensor(target), self.tensor(source)):
                own.add(target)
        untie(model, own)


@contextmanager
def open_source(folder: Path, model: PreTrainedModel) -> Iterator[SourceCheckpoint]:
    """Open the checkpoint in ``folder`` for a model (on the meta device); missing or broken files raise.

    Weights of the model that are declared tied but differ in the checkpoint are untied, and the pooler of a base model
    is taken out where the checkpoint has none.
    """
    with ExitStack() as stack:
        yield SourceCheckpoint(folder, model, stack)


def _model_name(key: str, prefix: str, expected: Container[str]) -> str | None:
    """The model's name of a stored key: with or without the base prefix, old norm endings renamed."""
    for old, new in _LEGACY_ENDINGS.items():
        if key.endswith(old):
            key = key.removesuffix(old) + new
    candidates = (key, prefix + key, key.removeprefix(prefix))
    return next((name for name in candidates if name in expected), None)
