"""Describing a backbone or merged model, and comparing it with its float model or another backbone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowbit.checkpoint import FloatWeights, measure, open_float_weights, read_config
from lowbit.errors import CheckpointError
from lowbit.inspection.statistics import difference, norm, ratio, statistics
from lowbit.inspection.stored import StoredBackbone, open_backbone
from lowbit.loop import Progress
from lowbit.qtensor import QuantizedTensor


def describe_backbone(path: Path, source: Path | None, progress: Progress | None) -> dict[str, Any]:
    """What is inside a backbone; with ``source``, the float model, errors are measured against it."""
    with open_backbone(path) as backbone, _float_weights(backbone, source) as floats:
        rows, energies = [], []
        for name in _reported(backbone.specs, progress):
            tensor = backbone.module(name)
            weight = tensor.dequantize()
            reference = None if floats is None else floats.weight(name)
            error = backbone.errors.get(name) if reference is None else difference(weight, reference)
            rows.append({**_facts(backbone, name, tensor), **statistics(tensor), "error": error})
            energies.append(norm(weight if reference is None else reference) ** 2)
        return {
            **_summary(backbone),
            "outliers": sum(row["outliers"] for row in rows),
            "error": _total(rows, "error", energies),
            "modules": rows,
        }


def compare_backbones(path: Path, other: Path, progress: Progress | None) -> dict[str, Any]:
    """How two backbones of one model differ.

    ``left`` and ``right`` are their sizes and fingerprints; ``modules`` has for each module that either quantizes its
    two schemes (None is float), stored bits and outliers, the share of ``codes_changed`` (None where the bits differ)
    and the ``difference`` of the dequantized weights relative to the second one's. ``tensors_changed``,
    ``tensors_left`` and ``tensors_right`` name the other tensors that differ or that only one of them has.
    """
    with open_backbone(path) as left, open_backbone(other) as right:
        _check_model(left, str(right.config.get("model_type")), right.folder)
        kinds = {name: spec.kind for side in (right, left) for name, spec in side.specs.items()}
        names = [*left.specs, *(name for name in right.specs if name not in left.specs)]
        rows, energies = [], []
        for name in _reported(names, progress):
            row, energy = _compared(left, right, name, kinds[name])
            rows.append(row)
            energies.append(energy)
        rest = left.rest(), right.rest()
        return {
            "kind": "backbones",
            "left": {"path": str(path), **_summary(left)},
            "right": {"path": str(other), **_summary(right)},
            "equal": left.fingerprint == right.fingerprint and rest[0] == rest[1],
            "difference": _total(rows, "difference", energies),
            "modules": rows,
            "tensors_changed": sorted(
                name for name in rest[0].keys() & rest[1].keys() if rest[0][name] != rest[1][name]
            ),
            "tensors_left": sorted(rest[0].keys() - rest[1].keys()),
            "tensors_right": sorted(rest[1].keys() - rest[0].keys()),
        }


def _compared(left: StoredBackbone, right: StoredBackbone, name: str, kind: str) -> tuple[dict[str, Any], float]:
    """The row of one module, and the squared norm that its difference refers to."""
    pair = [side.module(name) if name in side.specs else None for side in (left, right)]
    first, second = (
        side.float_weight(name, kind) if tensor is None else tensor.dequantize()
        for side, tensor in zip((left, right), pair, strict=True)
    )
    if first.shape != second.shape:
        raise CheckpointError(
            f"{name} is {list(first.shape)} in {left.folder} and {list(second.shape)} in {right.folder}; "
            "compare two backbones of one model"
        )
    row = {
        "name": name,
        "kind": kind,
        "shape": list(first.shape),
        "scheme": [None if tensor is None else str(tensor.scheme) for tensor in pair],
        "bits": [None if tensor is None else _bits(tensor) for tensor in pair],
        "outliers": [None if tensor is None else tensor.outlier_count for tensor in pair],
        "codes_changed": _codes_changed(*pair),
        "difference": difference(first, second),
    }
    return row, norm(second) ** 2


def _summary(backbone: StoredBackbone) -> dict[str, Any]:
    task = backbone.config.get("lowbit_task")
    return {
        "kind": "backbone" if task is None else "merged" if "fingerprint" in task else "tuned",
        **({} if task is None else {"task": task}),
        **dataclasses.asdict(measure(backbone.folder)),
        "fingerprint": backbone.fingerprint,
    }


def _facts(backbone: StoredBackbone, name: str, tensor: QuantizedTensor) -> dict[str, Any]:
    return {
        "name": name,
        "kind": backbone.specs[name].kind,
        "shape": list(tensor.shape),
        "scheme": str(tensor.scheme),
        "bits": _bits(tensor),
    }


def _bits(tensor: QuantizedTensor) -> float:
    """Bits of the stored tensors per weight."""
    stored = sum(part.numel() * part.element_size() for part in tensor.to_tensors().values())
    return 8 * stored / (tensor.shape[0] * tensor.shape[1])


def _codes_changed(left: QuantizedTensor | None, right: QuantizedTensor | None) -> float | None:
    """Share of unequal codes; None where they are not of one width."""
    if left is None or right is None or left.scheme.bits != right.scheme.bits:
        return None
    return float((left.codes() != right.codes()).double().mean())


def _total(rows: list[dict[str, Any]], key: str, energies: list[float]) -> float | None:
    """The relative error of all block linears, of each one's own and the squared norm that it refers to."""
    known = [
        (row[key], energy)
        for row, energy in zip(rows, energies, strict=True)
        if row["kind"] != "embedding" and row[key] is not None
    ]
    whole = math.fsum(energy for _, energy in known)
    squared = ratio(math.fsum(error**2 * energy for error, energy in known), whole)
    return None if squared is None else math.sqrt(squared)


def _reported(names: Iterable[str], progress: Progress | None) -> Iterator[str]:
    """The names, each reported before its turn."""
    known = list(names)
    for done, name in enumerate(known):
        if progress is not None:
            progress(done, len(known), name)
        yield name


@contextmanager
def _float_weights(backbone: StoredBackbone, folder: Path | None) -> Iterator[FloatWeights | None]:
    if folder is None:
        yield None
        return
    _check_model(backbone, read_config(folder).model_type, folder)
    shapes = {name: spec.shape for name, spec in backbone.specs.items()}
    with open_float_weights(folder, backbone.folder, shapes) as weights:
        yield weights


def _check_model(backbone: StoredBackbone, model_type: str, other: Path) -> None:
    own = backbone.config.get("model_type")
    if model_type != own:
        raise CheckpointError(
            f"{backbone.folder} is a {own} model and {other} a {model_type}; compare two of one model"
        )
