"""The weight files of a float checkpoint: safetensors, or the older ``.bin``, in one piece or in shards."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lowbit.errors import CheckpointError

SAFETENSORS_FILE = "model.safetensors"
BIN_FILE = "pytorch_model.bin"
_ZIP_START = b"PK\x03\x04"
_PICKLE_ERRORS = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)


class WeightFile:
    """The tensors of one file by their stored names, mapped from the file and read when they are asked for.

    A file that cannot be read raises CheckpointError with its path.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._handle: Any = None
        self._tensors: dict[str, torch.Tensor] = {}
        if path.suffix == ".bin":
            self._tensors = _load_bin(path)
            return
        try:
            self._handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; fetch the file again") from error

    def keys(self) -> Iterable[str]:
        """The names of its tensors."""
        return self._tensors.keys() if self._handle is None else self._handle.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return tuple(self._tensors[key].shape if self._handle is None else self._handle.get_slice(key).get_shape())

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor, mapped from the file where possible."""
        tensor: torch.Tensor = self._tensors[key] if self._handle is None else self._handle.get_tensor(key)
        return tensor


def weight_shards(folder: Path) -> dict[str, list[str] | None]:
    """Weight files of a folder with the keys that the index gives them; None means all keys of a single file.

    Safetensors come before ``.bin``; a folder with neither raises CheckpointError.
    """
    for name in (SAFETENSORS_FILE, BIN_FILE):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_index(index)
        if (folder / name).is_file():
            return {name: None}
    raise CheckpointError(f"{folder} has neither {SAFETENSORS_FILE} nor {BIN_FILE}; fetch the weights, too")


def check_readable(folder: Path) -> None:
    """Open every weight file of a folder once; one that is missing or cannot be read raises CheckpointError."""
    with ExitStack() as stack:
        for file in weight_shards(folder):
            WeightFile(folder / file, stack)


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.bin`` file. Files from before torch 1.6 cannot be mapped and are read as a whole."""
    try:
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP_START)) == _ZIP_START
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds objects besides tensors, which are not safe to load; fetch the file again, "
            "or save the model as safetensors"
        ) from error
    except _PICKLE_ERRORS as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}; fetch the file again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, no state dict; save the model as safetensors")
    return {key: value.detach() for key, value in loaded.items() if isinstance(value, torch.Tensor)}


def _read_index(index: Path) -> dict[str, list[str] | None]:
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}; fetch the file again") from error
    files: dict[str, list[str] | None] = {}
    for key, file in weight_map.items():
        keys = files.setdefault(file, [])
        assert keys is not None
        keys.append(key)
    return files
