"""Ours: a backbone as it is loaded, and in the execution layouts of ``lowbit.runtime.prepare``."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import torch

import lowbit
from lowbit import runtime
from lowbit.bench.peer import LastHidden, Peer, Run, Setting, as_run, read_model


def quantize(source: Path, folder: Path, setting: Setting, *, scheme: str) -> None:
    """A backbone with 8-bit embeddings, as ``lowbit quantize`` writes it; ``folder`` is empty."""
    folder.rmdir()  # quantize makes it itself
    lowbit.quantize(source, scheme, output=folder)


def load(folder: Path, setting: Setting) -> Run:
    """The backbone in transformers, unprepared."""
    torch.set_num_threads(setting.threads)
    return as_run(read_model(folder))


def load_prepared(folder: Path, setting: Setting, *, mode: str, backend: str) -> Run:
    """The backbone in an execution layout; one that needs activation ranges takes them from the run's texts."""
    torch.set_num_threads(setting.threads)
    prepare = getattr(runtime, "prepare")  # noqa: B009
    prepared = prepare(read_model(folder).model, mode=mode, backend=backend, calibration=setting.texts)
    return as_run(LastHidden(prepared))


def no_prepare() -> str | None:
    """The reason where this version has no layouts."""
    return None if hasattr(runtime, "prepare") else "this version of lowbit has no runtime.prepare"


def no_openvino() -> str | None:
    """The reason where OpenVINO or the layouts are missing."""
    return no_prepare() or (None if importlib.util.find_spec("openvino") else "openvino not installed")


_torch = partial(load_prepared, mode="latency", backend="torch")
_memory = partial(load_prepared, mode="memory", backend="torch")
_openvino = partial(load_prepared, mode="latency", backend="openvino")
_w4, _w8 = partial(quantize, scheme="w4"), partial(quantize, scheme="w8")

PEERS = (
    Peer("lowbit-eager", ("lowbit",), load, _w4),
    Peer("lowbit-torch", ("lowbit",), _torch, _w4, no_prepare),
    Peer("lowbit-torch-w8", ("lowbit",), _torch, _w8, no_prepare),
    Peer("lowbit-memory", ("lowbit",), _memory, _w4, no_prepare),
    Peer("lowbit-openvino", ("lowbit",), _openvino, _w4, no_openvino),
    Peer("lowbit-openvino-w8", ("lowbit",), _openvino, _w8, no_openvino),
)
