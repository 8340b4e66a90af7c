"""Ours: a backbone as it is loaded, and in the execution layouts of ``lowbit.runtime.prepare``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

import lowbit
from lowbit.bench.peer import LastHidden, Peer, Run, Setting, as_run, read_model
from lowbit.runtime import prepare


def quantize(source: Path, folder: Path, setting: Setting, *, scheme: str) -> None:
    """A backbone with 8-bit embeddings, as ``lowbit quantize`` writes it; ``folder`` is empty."""
    folder.rmdir()  # quantize makes it itself
    lowbit.quantize(source, scheme, output=folder)


def load(folder: Path, setting: Setting) -> Run:
    """The backbone in transformers, unprepared."""
    torch.set_num_threads(setting.threads)
    return as_run(read_model(folder))


def load_prepared(folder: Path, setting: Setting, *, mode: str, backend: str) -> Run:
    """The backbone in an execution layout; one that needs ranges of activations takes them from the calibration."""
    torch.set_num_threads(setting.threads)
    prepared = prepare(read_model(folder).model, mode=mode, backend=backend, calibration=setting.calibration)
    return as_run(LastHidden(prepared))


_torch = partial(load_prepared, mode="latency", backend="torch")
_memory = partial(load_prepared, mode="memory", backend="torch")
_openvino = partial(load_prepared, mode="latency", backend="openvino")
_w4, _w8 = partial(quantize, scheme="w4"), partial(quantize, scheme="w8")

PEERS = (
    Peer("lowbit-eager", ("lowbit",), load, _w4),
    Peer("lowbit-torch", ("lowbit",), _torch, _w4),
    Peer("lowbit-torch-w8", ("lowbit",), _torch, _w8),
    Peer("lowbit-memory", ("lowbit",), _memory, _w4),
    Peer("lowbit-openvino", ("lowbit", "openvino"), _openvino, _w4),
    Peer("lowbit-openvino-w8", ("lowbit", "openvino"), _openvino, _w8),
)
