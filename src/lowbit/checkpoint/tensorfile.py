"""Writing and checking one safetensors file that carries the checksums of its own tensors.

The manifest lives in the file's metadata, so every copy of the weights can be checked without another file.
All sizes are known before the first byte is written; checksums have a fixed length and are filled in last.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lowbit.errors import CheckpointError

MANIFEST_KEY = "lowbit_manifest"
MANIFEST_VERSION = 1

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Dtype, shape and, once known, SHA-256 of one stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str = "0" * 64

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def describe(self) -> str:
        """Dtype and shape for a message."""
        return f"{_NAMES[self.dtype]} {list(self.shape)}"


Entries = Mapping[str, TensorEntry]


class TensorWriter:
    """Write named tensors in any order into one safetensors file; use as a context manager.

    ``entries`` gives every tensor's dtype and shape in advance. Leaving the context normally completes the
    header; a tensor that was never written, or one that does not match its entry, raises CheckpointError.
    """

    def __init__(self, path: Path, entries: Entries) -> None:
        self._path = path
        self._entries = dict(sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
        self._pending = set(self._entries)
        self._start = len(_header(self._entries))
        self._offsets = _offsets(self._entries)
        self._file = path.open("wb")
        self._file.truncate(self._start + sum(entry.nbytes for entry in self._entries.values()))

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store one tensor."""
        entry = self._entries[name]
        if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape or name not in self._pending:
            found = TensorEntry(tensor.dtype, tuple(tensor.shape)).describe()
            raise CheckpointError(f"{self._path.name}: tensor {name!r} is {found}, planned {entry.describe()}")
        data = raw_bytes(tensor)
        self._file.seek(self._start + self._offsets[name])
        self._file.write(data)
        self._entries[name] = TensorEntry(entry.dtype, entry.shape, hashlib.sha256(data).hexdigest())
        self._pending.remove(name)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is not None:
                return
            if self._pending:
                raise CheckpointError(f"{self._path.name}: tensors were never written: {sorted(self._pending)[:5]}")
            self._file.seek(0)
            self._file.write(_header(self._entries))
            self._file.flush()
            os.fsync(self._file.fileno())


def manifest_metadata(entries: Entries) -> dict[str, str]:
    """The safetensors metadata that a file with these entries carries."""
    tensors = {name: [_NAMES[entry.dtype], list(entry.shape), entry.sha256] for name, entry in sorted(entries.items())}
    manifest = json.dumps({"version": MANIFEST_VERSION, "tensors": tensors}, separators=(",", ":"))
    return {"format": "pt", MANIFEST_KEY: manifest}


def tensor_entry(tensor: torch.Tensor) -> TensorEntry:
    """Dtype, shape and checksum of a tensor."""
    digest = hashlib.sha256(raw_bytes(tensor)).hexdigest()
    return TensorEntry(tensor.dtype, tuple(tensor.shape), digest)


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def read_manifest(*files: Path) -> dict[str, TensorEntry]:
    """The manifest of a file, or of the shards of one model, after the headers were compared with it.

    A file that is truncated, has no manifest, or lacks, adds or reshapes a tensor raises CheckpointError.
    """
    headers = {path: _read_header(path) for path in files}
    entries = _parse_manifest(files[0], headers[files[0]])
    found: set[str] = set()
    for path, header in headers.items():
        if header.metadata != headers[files[0]].metadata:
            raise CheckpointError(f"{path}: not a part of the same model as {files[0].name}; fetch the files again")
        for name, tensor in header.tensors.items():
            if name not in entries:
                raise CheckpointError(f"{path}: tensor {name!r} is not in the manifest; fetch the file again")
            if (tensor.dtype, tensor.shape) != (_NAMES[entries[name].dtype], entries[name].shape):
                stored = f"{tensor.dtype} {list(tensor.shape)}"
                expected = entries[name].describe()
                raise CheckpointError(f"{path}: tensor {name!r} is {stored}, the manifest says {expected}")
        size, expected_size = path.stat().st_size, header.start + sum(entries[name].nbytes for name in header.tensors)
        if size != expected_size:
            raise CheckpointError(f"{path}: {size} bytes found, {expected_size} expected; fetch the file again")
        found |= set(header.tensors)
    for name in entries:
        if name not in found:
            place = files[0] if len(files) == 1 else files[0].parent
            raise CheckpointError(f"{place}: tensor {name!r} is missing; fetch the file again")
    return entries


def check_bytes(path: Path, entries: Entries) -> None:
    """Compare the bytes of each tensor in a file with its checksum; the first difference raises by name."""
    header = _read_header(path)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        for name, tensor in header.tensors.items():
            with view[header.start + tensor.span.start : header.start + tensor.span.stop] as piece:
                digest = hashlib.sha256(piece).hexdigest()
            if digest != entries[name].sha256 or len(tensor.span) != entries[name].nbytes:
                raise CheckpointError(f"{path}: tensor {name!r} does not match its checksum; fetch the file again")


@dataclass(frozen=True)
class _Stored:
    """One tensor as the header of a file describes it; ``span`` are its bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    span: range


@dataclass(frozen=True)
class _Header:
    metadata: dict[str, str]
    tensors: dict[str, _Stored]
    start: int


def _read_header(path: Path) -> _Header:
    if not path.is_file():
        raise CheckpointError(f"{path}: the file does not exist")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise CheckpointError(f"{path}: the header is truncated or not safetensors; fetch the file again")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = dict(header.pop("__metadata__", {}))
        tensors = {
            name: _Stored(item["dtype"], tuple(item["shape"]), range(*item["data_offsets"]))
            for name, item in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error!r}); fetch the file again") from error
    return _Header(metadata, tensors, 8 + length)


def _parse_manifest(path: Path, header: _Header) -> dict[str, TensorEntry]:
    if MANIFEST_KEY not in header.metadata:
        raise CheckpointError(f"{path}: no lowbit manifest in the file; it was not written by lowbit")
    try:
        manifest = json.loads(header.metadata[MANIFEST_KEY])
        if manifest["version"] != MANIFEST_VERSION:
            raise CheckpointError(
                f"{path}: manifest version {manifest['version']!r}, this lowbit reads {MANIFEST_VERSION}"
            )
        return {
            name: TensorEntry(_DTYPES[dtype], tuple(shape), sha256)
            for name, (dtype, shape, sha256) in manifest["tensors"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the manifest is damaged ({error!r}); fetch the file again") from error


def _offsets(entries: Entries) -> dict[str, int]:
    """Where each tensor starts; wide dtypes come first, which keeps every tensor aligned without holes."""
    offsets, position = {}, 0
    for name, entry in entries.items():
        offsets[name] = position
        position += entry.nbytes
    return offsets


def _header(entries: Entries) -> bytes:
    """Length and JSON header, padded with blanks to a multiple of eight bytes."""
    offsets = _offsets(entries)
    header: dict[str, Any] = {"__metadata__": manifest_metadata(entries)}
    for name, entry in entries.items():
        span = [offsets[name], offsets[name] + entry.nbytes]
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
