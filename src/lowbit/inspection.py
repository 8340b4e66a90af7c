"""What is inside a directory that lowbit wrote, and whether it is whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lowbit.adapter import TENSORS_FILE, is_adapter, read_adapter
from lowbit.checkpoint import (
    Entries,
    Verified,
    fingerprint,
    measure,
    read_manifest,
    read_quantization_config,
    stored_modules,
    verify_backbone,
    weight_files,
)
from lowbit.plan import ModuleSpec, module_specs
from lowbit.qtensor import tensor_specs


def verify(directory: str | Path) -> Verified:
    """Compare every byte of a backbone, merged model or adapter with its checksum.

    The first fault raises :class:`CheckpointError` naming file and tensor. The fingerprint of an adapter is that of the
    backbone it belongs to.
    """
    path = Path(directory)
    if not is_adapter(path):
        return verify_backbone(path)
    info, tensors = read_adapter(path)
    return Verified(path, len(tensors), 0, (path / TENSORS_FILE).stat().st_size, info.fingerprint)


def inspect(directory: str | Path) -> dict[str, Any]:
    """A JSON-able description of a backbone, a merged model or a task adapter.

    Backbones: ``kind``, size fields, ``fingerprint`` and per module name, kind, shape, scheme, outliers, stored bits
    per weight and the range of its step sizes. ``kind`` is ``backbone``, ``merged`` with an adapter, or ``tuned``
    before it was quantized. Adapters: their description and the trained tensors. Anything else, or a damaged file,
    raises CheckpointError.
    """
    path = Path(directory)
    return _inspect_adapter(path) if is_adapter(path) else _inspect_backbone(path)


def _inspect_adapter(path: Path) -> dict[str, Any]:
    info, tensors = read_adapter(path)
    rows = [
        {"name": n, "dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for n, t in tensors.items()
    ]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {"kind": "adapter", **info.to_dict(), "bytes": size, "tensors": rows}


def _inspect_backbone(path: Path) -> dict[str, Any]:
    specs = module_specs(read_quantization_config(path))
    files = weight_files(path)
    entries = read_manifest(*files)
    stored = stored_modules(entries, specs, path)
    scales = _scales(files, {f"{module}.scale" for module in stored.values()})
    modules = [_module_row(name, specs[name], stored[name], entries, scales) for name in specs]
    task = json.loads((path / "config.json").read_text(encoding="utf-8")).get("lowbit_task")
    return {
        "kind": "backbone" if task is None else "merged" if "fingerprint" in task else "tuned",
        **({} if task is None else {"task": task}),
        **dataclasses.asdict(measure(path)),
        "fingerprint": fingerprint(entries, stored),
        "modules": modules,
    }


def _scales(files: list[Path], names: set[str]) -> dict[str, torch.Tensor]:
    """The step sizes of all quantized modules, from whichever shard holds them."""
    scales: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            scales |= {name: tensors.get_tensor(name) for name in names & set(tensors.keys())}
    return scales


def _module_row(
    name: str, spec: ModuleSpec, path: str, entries: Entries, scales: dict[str, torch.Tensor]
) -> dict[str, Any]:
    scale = scales[f"{path}.scale"].float()
    outliers = entries.get(f"{path}.outlier_value")
    parts = tensor_specs(spec.scheme, spec.shape, None if outliers is None else outliers.shape[0])
    stored = sum(entries[f"{path}.{part}"].nbytes for part in parts)
    return {
        "name": name,
        "kind": spec.kind,
        "shape": list(spec.shape),
        "scheme": str(spec.scheme),
        "outliers": 0 if outliers is None else outliers.shape[0],
        "bits": round(8 * stored / (spec.shape[0] * spec.shape[1]), 4),
        "scale_min": float(scale.min()),
        "scale_max": float(scale.max()),
    }
