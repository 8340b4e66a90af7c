"""The task adapter on disk: ``task_adapter.json``, and ``task_adapter.safetensors`` or the files of peft."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from lowbit.adapter.card import adapter_card
from lowbit.adapter.info import ADAPTER_VERSION, CAUSAL_LM, FACTORS, LABELS, VALUES, AdapterInfo
from lowbit.checkpoint import (
    CARD_FILE,
    TensorEntry,
    TensorWriter,
    atomic_directory,
    check_bytes,
    local_folder,
    read_manifest,
)
from lowbit.errors import AdapterError, CheckpointError

INFO_FILE = "task_adapter.json"
# By format, the file with the tensors and what goes with it.
_TENSORS_FILES = {VALUES: "task_adapter.safetensors", FACTORS: "adapter_model.safetensors"}
_SIDE_FILES = {VALUES: (), FACTORS: ("adapter_config.json",)}
# JSON types of the fields that other code relies on; each of them is required.
_KINDS = {
    "fingerprint": str,
    "metrics": list,
    "primary": str,
    "label_names": list | None,
    "max_length": int,
    "scores": dict,
    "backbone": str | None,
    "task_type": str,
}


def adapter_files(directory: str | Path) -> tuple[str, ...]:
    """The names of the files of an adapter, the one with the tensors first, the card apart."""
    kind = read_info(directory).format
    return (_TENSORS_FILES[kind], INFO_FILE, *_SIDE_FILES[kind])


def adapter_folder(adapter: str | Path) -> Path:
    """The local folder of an adapter given as a folder or a hub id; neither raises AdapterError."""
    try:
        wanted = [CARD_FILE, INFO_FILE, *_TENSORS_FILES.values(), *_SIDE_FILES[FACTORS]]
        return local_folder(adapter, "a task adapter", f"a folder with {INFO_FILE}", wanted)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error


def is_adapter(directory: str | Path) -> bool:
    """Whether a directory holds a task adapter."""
    return (Path(directory) / INFO_FILE).is_file()


def write_adapter(
    output: str | Path,
    info: AdapterInfo,
    tensors: Mapping[str, torch.Tensor],
    side_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a new adapter directory, whole or not at all; an existing one raises OutputExistsError.

    ``side_files`` are further text files by name.
    """
    entries = {name: TensorEntry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with atomic_directory(output) as partial:
        with TensorWriter(partial / _TENSORS_FILES[info.format], entries) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        for name, text in (side_files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        _describe(partial, info)
    return Path(output)


def record_scores(directory: str | Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Add the metrics of the adapter as it is stored, by evaluation set, to its description and card."""
    finite = {
        split: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for split, metrics in scores.items()
    }
    _describe(Path(directory), dataclasses.replace(read_info(directory), scores=finite))


def read_info(directory: str | Path) -> AdapterInfo:
    """The description of an adapter; anything that is none raises AdapterError."""
    path = adapter_folder(directory) / INFO_FILE
    if not path.is_file():
        raise AdapterError(f"{directory} is not a task adapter: {INFO_FILE} is missing")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("version") != ADAPTER_VERSION:
            raise AdapterError(
                f"{path} has format version {values.get('version')!r}, this lowbit reads {ADAPTER_VERSION}"
            )
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise AdapterError(f"{path} is damaged: {name} is {values[name]!r}")
        if values["task_type"] not in (LABELS, CAUSAL_LM):
            raise AdapterError(f"{path} is for a {values['task_type']!r}, which this lowbit does not know; update it")
        if values.setdefault("format", VALUES) not in _TENSORS_FILES:
            raise AdapterError(f"{path} holds {values['format']!r}, which this lowbit does not know; update it")
        values["metrics"] = tuple(values["metrics"])
        if values["label_names"] is not None:
            values["label_names"] = tuple(values["label_names"])
        return AdapterInfo(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from error


def read_adapter(directory: str | Path) -> tuple[AdapterInfo, dict[str, torch.Tensor]]:
    """Description and tensors of an adapter, after every byte was compared with its checksum."""
    folder = adapter_folder(directory)
    info = read_info(folder)
    file = folder / _TENSORS_FILES[info.format]
    check_bytes(file, read_manifest(file))
    return info, load_file(file)


def _describe(folder: Path, info: AdapterInfo) -> None:
    """Write description and card, each whole or not at all."""
    for name, text in {CARD_FILE: adapter_card(info), INFO_FILE: json.dumps(info.to_dict(), indent=1) + "\n"}.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
