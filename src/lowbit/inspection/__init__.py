"""What is inside a directory that lowbit wrote, whether it is whole, and how two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.adapter import adapter_files, is_adapter, read_adapter
from lowbit.checkpoint import Verified, checkpoint_folder, is_backbone, verify_backbone
from lowbit.errors import AdapterError, CheckpointError
from lowbit.inspection.adapters import compare_adapters, describe_adapter
from lowbit.inspection.backbones import compare_backbones, describe_backbone
from lowbit.loop import Progress

__all__ = ["inspect", "verify"]


def verify(directory: str | Path) -> Verified:
    """Compare every byte of a backbone, merged model or adapter with its checksum.

    The first fault raises :class:`CheckpointError` naming file and tensor. The fingerprint of an adapter is that of the
    backbone it belongs to.
    """
    path = Path(directory)
    if not is_adapter(path):
        return verify_backbone(path)
    info, tensors = read_adapter(path)
    return Verified(path, len(tensors), 0, (path / adapter_files(path)[0]).stat().st_size, info.fingerprint)


def inspect(
    directory: str | Path,
    other: str | Path | None = None,
    *,
    backbone: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A JSON-able description of a backbone, merged model or task adapter, or of how two of a kind differ.

    All are folders or hub ids; weights are read one module at a time. Backbones: ``kind`` (``backbone``, ``merged``
    with an adapter, or ``tuned`` before it was quantized), size fields, ``fingerprint`` and per module name, kind,
    shape, scheme, stored bits per weight, the numbers of :func:`lowbit.inspection.statistics.statistics`, and
    ``error``, the relative weight error ``||W - Q(W)|| / ||W||``: what was recorded when the model was quantized, or
    measured where ``other`` is the float model. Adapters: their description and the trained tensors; ``moved`` is how
    far each is from its value in ``backbone``, relative to it.
    Where ``other`` is of the same kind, ``kind`` is ``backbones`` or ``adapters``, and see
    :func:`~lowbit.inspection.backbones.compare_backbones` or :func:`~lowbit.inspection.adapters.compare_adapters`.

    Damaged files and models that do not belong together raise CheckpointError or AdapterError.
    """
    path = checkpoint_folder(directory)
    second = None if other is None else checkpoint_folder(other)
    base = None if backbone is None else checkpoint_folder(backbone)
    if is_adapter(path):
        if second is None:
            return describe_adapter(path, base)
        if not is_adapter(second):
            raise AdapterError(f"{other} is no task adapter; give the backbone of an adapter as `backbone`")
        return compare_adapters(path, second, base)
    if base is not None:
        raise AdapterError(f"{directory} is no task adapter; `backbone` is for adapters only")
    if second is None or not (is_adapter(second) or is_backbone(second)):
        return describe_backbone(path, second, progress)
    if is_adapter(second):
        raise CheckpointError(f"{other} is a task adapter; put it first, with `backbone`")
    return compare_backbones(path, second, progress)
