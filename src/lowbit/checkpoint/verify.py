"""Checking a written directory, byte by byte."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lowbit.checkpoint.directory import weight_files
from lowbit.checkpoint.tensorfile import Entries, check_bytes, read_manifest
from lowbit.errors import CheckpointError
from lowbit.plan import ModuleSpec, module_specs
from lowbit.qtensor import tensor_specs


@dataclass(frozen=True)
class Verified:
    """What a check found to be whole."""

    path: Path
    tensors: int
    quantized_modules: int
    bytes: int
    fingerprint: str


def verify_backbone(directory: str | Path) -> Verified:
    """Check every tensor of a backbone against its checksum and the module list in ``config.json``.

    The first fault raises :class:`CheckpointError` naming file and tensor.
    """
    path = Path(directory)
    specs = module_specs(read_quantization_config(path))
    files = weight_files(path)
    entries = read_manifest(*files)
    stored = stored_modules(entries, specs, path)
    for file in files:
        check_bytes(file, entries)
    check_input_scales(files, specs, stored)
    size = sum(file.stat().st_size for file in files)
    return Verified(path, len(entries), len(stored), size, fingerprint(entries, stored))


def is_backbone(path: Path) -> bool:
    """Whether a model directory was quantized by lowbit; a broken configuration raises CheckpointError."""
    return _quantization(path).get("quant_method") == "lowbit"


def read_quantization_config(path: Path) -> dict[str, Any]:
    """The ``quantization_config`` of a backbone directory; anything else raises CheckpointError."""
    quantization = _quantization(path)
    if quantization.get("quant_method") != "lowbit":
        raise CheckpointError(f"{path} is not a lowbit backbone; make one with `lowbit quantize MODEL -o DIR`")
    return quantization


def _quantization(path: Path) -> dict[str, Any]:
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config} does not exist; {path} is not a model directory")
    try:
        values = dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{config} is not the configuration of a model: {error}") from error
    return values.get("quantization_config") or {}


def stored_modules(entries: Entries, specs: Mapping[str, ModuleSpec], folder: Path) -> dict[str, str]:
    """Stored paths of the quantized modules by relative name, after their tensors were compared with ``specs``.

    The same backbone may have been saved from a task class, which puts a prefix before every name. ``folder`` is named
    in errors.
    """
    first = next(iter(specs), None)
    if first is None:
        raise CheckpointError(f"{folder}: quantization_config in config.json lists no quantized module; it is damaged")
    prefix = next((n.removesuffix(f"{first}.weight") for n in entries if n.endswith(f".{first}.weight")), "")
    stored = {}
    for name, spec in specs.items():
        path = prefix + name
        values = entries.get(f"{path}.outlier_value")
        expected = tensor_specs(spec.scheme, spec.shape, 0 if values is None else values.shape[0])
        for part in expected:
            if f"{path}.{part}" not in entries:
                raise CheckpointError(f"{folder}: tensor '{path}.{part}' of a quantized module is missing")
        for part, (dtype, shape) in expected.items():
            entry = entries[f"{path}.{part}"]
            if (entry.dtype, entry.shape) != (dtype, shape):
                found = entry.describe()
                raise CheckpointError(
                    f"{folder}: tensor '{path}.{part}' is {found}, config.json asks for {dtype} {list(shape)}"
                )
        stored[name] = path
    return stored


def check_input_scales(files: Iterable[Path], specs: Mapping[str, ModuleSpec], stored: Mapping[str, str]) -> None:
    """Raise :class:`CheckpointError` with the name of a stored step of inputs that is no positive finite number."""
    names = {f"{path}.input_scale" for name, path in stored.items() if specs[name].scheme.activations == "static"}
    for file in files if names else ():
        with safe_open(file, framework="pt") as opened:
            for name in sorted(names.intersection(opened.keys())):
                step = float(opened.get_tensor(name))
                if not 0 < step < math.inf:
                    raise CheckpointError(
                        f"{file}: tensor '{name}' is {step:g}, no step size; quantize the model again"
                    )


def fingerprint(entries: Entries, stored: Mapping[str, str]) -> str:
    """SHA-256 over the checksums of all quantized tensors: the same for every task class on one backbone."""
    digest = hashlib.sha256()
    for name, path in sorted(stored.items()):
        for part in sorted(key for key in entries if key.startswith(f"{path}.")):
            if not part.endswith(".bias"):
                digest.update(f"{name}{part.removeprefix(path)}:{entries[part].sha256}\n".encode())
    return digest.hexdigest()
