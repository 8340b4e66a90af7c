"""The task adapter on disk: ``task_adapter.json`` and ``task_adapter.safetensors``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lowbit.checkpoint import TensorEntry, TensorWriter, atomic_directory, check_bytes, read_manifest
from lowbit.errors import AdapterError

ADAPTER_VERSION = 1
INFO_FILE = "task_adapter.json"
TENSORS_FILE = "task_adapter.safetensors"
LABELS, CAUSAL_LM = "labels", "causal-lm"
# JSON types of the fields that other code relies on; each of them is required.
_KINDS = {"fingerprint": str, "metrics": list, "primary": str, "label_names": list | None, "max_length": int}


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is for.

    ``fingerprint`` names the backbone it was trained on; ``task_type`` is ``labels`` (classification and regression) or
    ``causal-lm``; ``label_names`` is None for regression and language models; ``trained`` counts what was trained by
    group; ``options`` records how.
    """

    fingerprint: str
    task: str
    metrics: tuple[str, ...]
    primary: str
    label_names: tuple[str, ...] | None
    max_length: int
    trained: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    task_type: str = LABELS
    version: int = ADAPTER_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return dataclasses.asdict(self)


def is_adapter(directory: str | Path) -> bool:
    """Whether a directory holds a task adapter."""
    return (Path(directory) / INFO_FILE).is_file()


def write_adapter(output: str | Path, info: AdapterInfo, tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write a new adapter directory, whole or not at all; an existing one raises OutputExistsError."""
    entries = {name: TensorEntry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with atomic_directory(output) as partial:
        with TensorWriter(partial / TENSORS_FILE, entries) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor)
        (partial / "README.md").write_text(_card(info), encoding="utf-8")
        (partial / INFO_FILE).write_text(json.dumps(info.to_dict(), indent=1) + "\n", encoding="utf-8")
    return Path(output)


def read_info(directory: str | Path) -> AdapterInfo:
    """The description of an adapter; anything that is none raises AdapterError."""
    path = Path(directory) / INFO_FILE
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
        if values.get("task_type", LABELS) not in (LABELS, CAUSAL_LM):
            raise AdapterError(f"{path} is for a {values['task_type']!r}, which this lowbit does not know; update it")
        values["metrics"] = tuple(values["metrics"])
        if values["label_names"] is not None:
            values["label_names"] = tuple(values["label_names"])
        return AdapterInfo(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from error


def read_adapter(directory: str | Path) -> tuple[AdapterInfo, dict[str, torch.Tensor]]:
    """Description and tensors of an adapter, after every byte was compared with its checksum."""
    info = read_info(directory)
    file = Path(directory) / TENSORS_FILE
    check_bytes(file, read_manifest(file))
    return info, load_file(file)


def _card(info: AdapterInfo) -> str:
    """Markdown for the adapter's ``README.md``."""
    return f"""# Task adapter for {info.task}

A lowbit task adapter: {info.trained} trained parameters on the backbone with fingerprint
`{info.fingerprint}`.

```python
import lowbit

model = lowbit.load("BACKBONE", adapter="PATH")
```
"""
