"""One deployable directory out of a backbone and an adapter."""

from __future__ import annotations

from pathlib import Path

from lowbit.adapter.files import adapter_folder, read_info
from lowbit.adapter.info import FACTORS
from lowbit.adapter.load import load
from lowbit.checkpoint import checkpoint_folder, refuse_existing
from lowbit.errors import AdapterError
from lowbit.hf import save


def merge(backbone: str | Path, adapter: str | Path, output: str | Path) -> Path:
    """Write backbone and adapter as one directory, exactly: each float32 weight is bit-equal to the adapted one's.

    Trained values take the place of the backbone's outliers, which lie outside the grid, so nothing is rounded.
    Low-rank factors have no such place: merging them raises AdapterError.
    """
    refuse_existing(output)
    backbone, adapter = checkpoint_folder(backbone), adapter_folder(adapter)
    info = read_info(adapter)
    if info.format == FACTORS:
        raise AdapterError(
            f"{adapter} holds low-rank factors, whose sum with a quantized weight would have to be quantized again; "
            "load it with its backbone instead"
        )
    model = load(backbone, adapter)
    model.config.lowbit_task = info.to_dict()
    return save(model, output, source=backbone)
