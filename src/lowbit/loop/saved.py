"""The file from which a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from lowbit.checkpoint import TensorEntry, TensorWriter, check_bytes, read_manifest, tensor_entry
from lowbit.errors import CheckpointError

_VERSION = 1
_RECORD = "record"  # the JSON part, as bytes: one file is replaced in one go, two are not


class State(Protocol):
    """What a run knows between two steps: a part for JSON, and tensors by name."""

    def counters(self) -> dict[str, Any]:
        """JSON-able part."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """The other part."""
        ...

    def restore(self, counters: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the state that gave ``counters`` and ``tensors``."""
        ...


class SavedRun:
    """``.NAME.checkpoint`` beside the output NAME: a safetensors file with the state of the training.

    ``facts`` say what run it is; a file of a run with other facts is refused. It appears whole or not at all.
    """

    def __init__(self, output: Path, facts: Mapping[str, Any]) -> None:
        self.path = output.parent / f".{output.name}.checkpoint"
        self._facts = {"version": _VERSION, **facts}

    def identify(self, **facts: Any) -> None:
        """Add what is known only where the training starts."""
        self._facts |= facts

    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.path.exists()

    def save(self, state: State) -> None:
        """Write the state, in place of the one before."""
        record = json.dumps({"facts": self._facts, "counters": state.counters()}).encode()
        tensors = {_RECORD: torch.frombuffer(bytearray(record), dtype=torch.uint8), **state.tensors()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with TensorWriter(self._partial, {n: TensorEntry(t.dtype, tuple(t.shape)) for n, t in tensors.items()}) as file:
            for name, tensor in tensors.items():
                file.write(name, tensor)
        self._partial.replace(self.path)

    def restore(self, state: State) -> None:
        """Put the saved state into ``state``. A damaged file, or that of another run, raises CheckpointError."""
        try:
            check_bytes(self.path, read_manifest(self.path))
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or remove it to start over") from error
        tensors = load_file(self.path)
        record = json.loads(tensors.pop(_RECORD).numpy().tobytes())
        now = json.loads(json.dumps(self._facts))
        changed = [_difference(n, record["facts"].get(n), now.get(n)) for n in {**record["facts"], **now}]
        if any(changed):
            raise CheckpointError(
                f"{self.path} is the checkpoint of another run ({', '.join(filter(None, changed))}); "
                "to go on with it repeat its command, to start over remove the file"
            )
        state.restore(record["counters"], tensors)

    def remove(self) -> None:
        """Take the file away: the run has its result."""
        for path in (self.path, self._partial):
            path.unlink(missing_ok=True)

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")


def rows_digest(*features: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of tokenized rows."""
    digest = hashlib.sha256()
    for rows in features:
        for row in rows:
            digest.update(json.dumps(dict(row)).encode())
        digest.update(os.linesep.encode())
    return digest.hexdigest()


def model_digest(model: torch.nn.Module) -> str:
    """SHA-256 of everything that a model holds."""
    entries = {name: tensor_entry(tensor).sha256 for name, tensor in model.state_dict().items()}
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _difference(name: str, before: Any, now: Any) -> str:
    if before == now:
        return ""
    is_digest = isinstance(now, str) and len(now) == 64
    return f"other {name}" if is_digest else f"{name} was {before}, now {now}"
