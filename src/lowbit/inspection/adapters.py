"""Describing a task adapter, and comparing two of one backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lowbit.adapter import AdapterInfo, read_adapter
from lowbit.errors import AdapterError
from lowbit.inspection.statistics import difference
from lowbit.inspection.stored import open_backbone

Tensors = dict[str, torch.Tensor]


def describe_adapter(path: Path, backbone: Path | None) -> dict[str, Any]:
    """The description of an adapter and its tensors, with how far they moved where the backbone is given."""
    info, tensors = read_adapter(path)
    start = _start(path, info, tensors, backbone)
    rows = [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "moved": _moved(tensor, start.get(name)),
        }
        for name, tensor in tensors.items()
    ]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {"kind": "adapter", **info.to_dict(), "bytes": size, "tensors": rows}


def compare_adapters(path: Path, other: Path, backbone: Path | None) -> dict[str, Any]:
    """How two adapters of one backbone differ.

    ``left`` and ``right`` are their descriptions; ``tensors`` has for each tensor of both whether it is ``equal``, the
    ``difference`` relative to the second one (None where the shapes differ, as of heads), and how far both ``moved``
    from the backbone, where that is given. ``tensors_left`` and ``tensors_right`` are the tensors of one alone.
    Adapters of different backbones raise AdapterError.
    """
    (left_info, left), (right_info, right) = read_adapter(path), read_adapter(other)
    if left_info.fingerprint != right_info.fingerprint:
        raise AdapterError(
            f"{path} was trained on the backbone {left_info.fingerprint[:12]}, {other} on "
            f"{right_info.fingerprint[:12]}; compare adapters of one backbone"
        )
    start = _start(path, left_info, left | right, backbone)
    rows = []
    for name in left:
        if name in right:
            first, second = left[name], right[name]
            alike = first.shape == second.shape
            rows.append(
                {
                    "name": name,
                    "shape": [list(first.shape), list(second.shape)],
                    "equal": first.dtype == second.dtype and torch.equal(first, second),
                    "difference": difference(first, second) if alike else None,
                    "moved": [_moved(tensor, start.get(name)) for tensor in (first, second)],
                }
            )
    return {
        "kind": "adapters",
        "left": {"path": str(path), **left_info.to_dict()},
        "right": {"path": str(other), **right_info.to_dict()},
        "equal": all(row["equal"] for row in rows) and left.keys() == right.keys(),
        "tensors": rows,
        "tensors_left": sorted(left.keys() - right.keys()),
        "tensors_right": sorted(right.keys() - left.keys()),
    }


def _start(path: Path, info: AdapterInfo, tensors: Tensors, backbone: Path | None) -> Tensors:
    """What the backbone, if it is given, holds in the place of an adapter's tensors; a head has no such value."""
    if backbone is None:
        return {}
    with open_backbone(backbone) as stored:
        if stored.fingerprint != info.fingerprint:
            raise AdapterError(
                f"{path} was trained on the backbone {info.fingerprint[:12]}, {backbone} is "
                f"{stored.fingerprint[:12]}; give the backbone it was trained on"
            )
        found = {name: stored.tensor(name) for name in tensors}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def _moved(tensor: torch.Tensor, start: torch.Tensor | None) -> float | None:
    """The change of a tensor relative to where it started; None where that is not known or another shape."""
    return None if start is None or start.shape != tensor.shape else difference(tensor, start)
