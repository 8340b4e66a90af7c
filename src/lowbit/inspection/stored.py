"""Reading a backbone directory module by module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lowbit.checkpoint import (
    check_bytes,
    check_input_scales,
    fingerprint,
    read_manifest,
    read_quantization_config,
    stored_modules,
    weight_files,
)
from lowbit.errors import CheckpointError
from lowbit.plan import module_specs
from lowbit.qtensor import QuantizedTensor, tensor_specs


class StoredBackbone:
    """A backbone or merged model on disk. ``specs`` and ``stored`` are the quantized modules by relative name.

    ``errors`` are the relative weight errors that were recorded when it was quantized, if they were.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        quantization = read_quantization_config(folder)
        files = weight_files(folder)
        self.folder = folder
        self.specs = module_specs(quantization)
        self.entries = read_manifest(*files)
        self.stored = stored_modules(self.entries, self.specs, folder)
        self.fingerprint = fingerprint(self.entries, self.stored)
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.errors: dict[str, float] = quantization.get("errors") or {}
        if not isinstance(self.errors, dict) or not all(
            isinstance(error, float | int) for error in self.errors.values()
        ):
            raise CheckpointError(f"{folder}: `errors` in config.json are damaged; quantize the model again")
        self._tensors: dict[str, Any] = {}
        check_input_scales(files, self.specs, self.stored)
        for file in files:
            check_bytes(file, self.entries)
            opened = stack.enter_context(safe_open(file, framework="pt"))
            self._tensors |= dict.fromkeys(opened.keys(), opened)

    @property
    def prefix(self) -> str:
        """What stands before the relative names in the file: ``bert.`` where a task class was saved, or nothing."""
        name, path = next(iter(self.stored.items()))
        return path.removesuffix(name)

    def module(self, name: str) -> QuantizedTensor:
        """The payload of one quantized module."""
        spec, path = self.specs[name], self.stored[name]
        values = self.entries.get(f"{path}.outlier_value")
        parts = tensor_specs(spec.scheme, spec.shape, None if values is None else values.shape[0])
        tensors = {part: self._tensors[f"{path}.{part}"].get_tensor(f"{path}.{part}") for part in parts}
        return QuantizedTensor.from_tensors(tensors, spec.scheme, spec.shape)

    def rest(self) -> dict[str, str]:
        """Checksums of all tensors outside the payloads, by relative name."""
        payloads = tuple(f"{path}." for path in self.stored.values())
        return {
            name.removeprefix(self.prefix): entry.sha256
            for name, entry in self.entries.items()
            if not name.startswith(payloads) or name.endswith(".bias")
        }

    def tensor(self, name: str) -> torch.Tensor | None:
        """A stored tensor by its relative name, or its own; None when there is none."""
        found = next((key for key in (self.prefix + name, name) if key in self._tensors), None)
        return None if found is None else self._tensors[found].get_tensor(found)

    def float_weight(self, name: str, kind: str) -> torch.Tensor:
        """The weight [out, in] of a module that is not quantized here; a missing one raises CheckpointError."""
        stored = self.tensor(f"{name}.weight")
        if stored is None:
            raise CheckpointError(f"{self.folder} has no module {name!r}; compare two backbones of one model")
        return stored.t() if kind == "conv1d" else stored


@contextmanager
def open_backbone(folder: Path) -> Iterator[StoredBackbone]:
    """Open a backbone directory after every byte was compared with its checksum; damage raises CheckpointError."""
    with ExitStack() as stack:
        yield StoredBackbone(folder, stack)
