"""A peer in a process of its own: its memory and its threads are nobody else's. It sleeps until it is asked.

Times are taken inside the process, so that the way through the pipe is in none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowbit.bench.inputs import read_inputs
from lowbit.bench.machine import resident_bytes
from lowbit.bench.peer import Batch, Peer, Run

_TURN = 0.2  # seconds that a turn lasts, where a pass is shorter
_LONG = 0.5  # a pass of so many seconds is not helped by warm caches


class PeerFailed(Exception):
    """What a peer raised, or how its process ended."""


class Worker:
    """The parent's end: :meth:`ask` calls a method of :class:`_Serving` in the process and waits."""

    def __init__(self, peer: Peer, inputs: Path, log: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(peer, inputs, theirs), daemon=True)
        with _printing_to(log):
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method returns; :class:`PeerFailed` where it raises or the process ends."""
        try:
            self._pipe.send((method, arguments))
            failed, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise PeerFailed(f"its process ended with exit code {self._process.exitcode}") from error
        if failed:
            raise PeerFailed(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=10)
        self._process.kill()


def quantized(peer: Peer, source: Path, folder: Path, inputs: Path, log: Path) -> tuple[Path, dict[str, Any]]:
    """Where a peer's model is, and what it took; what ``folder`` has already is used again.

    ``quantize_seconds`` and ``quantize_cpu_seconds`` are time and processor time, ``disk_bytes`` all that was written.
    """
    if peer.quantize is None:
        size = sum(file.stat().st_size for file in (*source.glob("*.safetensors"), *source.glob("*.bin")))
        return source, {"quantize_seconds": None, "quantize_cpu_seconds": None, "disk_bytes": size}
    record = folder.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        folder.mkdir()
        worker = Worker(peer, inputs, log)
        try:
            seconds, cpu = worker.ask("quantize", source, folder)
        finally:
            worker.close()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        cost = {"quantize_seconds": seconds, "quantize_cpu_seconds": cpu, "disk_bytes": size}
        record.write_text(json.dumps(cost), encoding="utf-8")
    return folder, json.loads(record.read_text(encoding="utf-8"))


class _Serving:
    """The process's end: what it can be asked."""

    def __init__(self, peer: Peer, inputs: Path) -> None:
        for package in peer.packages:
            importlib.import_module(package)
        self._setting, self._workloads = read_inputs(inputs)
        self._peer = peer
        self._run: Run
        self._before = resident_bytes()

    def ready(self) -> None:
        """Nothing: whoever answers has made its imports."""

    def quantize(self, source: Path, folder: Path) -> tuple[float, float]:
        """Seconds, and processor seconds, from the float model to the peer's files."""
        torch.set_num_threads(self._setting.threads)
        start, cpu = time.perf_counter(), time.process_time()
        if self._peer.quantize is not None:
            self._peer.quantize(source, folder, self._setting)
        return time.perf_counter() - start, time.process_time() - cpu

    def load(self, folder: Path) -> float:
        """Seconds from the files to something that can be called."""
        start = time.perf_counter()
        self._run = self._peer.load(folder, self._setting)
        return time.perf_counter() - start

    def first(self, index: int) -> tuple[float, list[np.ndarray]]:
        """Seconds of the first pass over a workload, which may compile, and its outputs in float32."""
        start = time.perf_counter()
        outputs = [self._run(batch) for batch in self._workloads[index].batches]
        seconds = time.perf_counter() - start
        return seconds, [output.float().numpy() for output in outputs]

    def turn(self, index: int) -> float:
        """Seconds of a pass: the median of a turn, after one that finds the caches cold."""
        return turn(self._run, self._workloads[index].batches)

    def resident(self) -> int | None:
        """Resident bytes over what the process had after its imports."""
        now = resident_bytes()
        return None if now is None or self._before is None else now - self._before


def turn(run: Run, batches: list[Batch]) -> float:
    """Seconds of one pass over ``batches``; a long one is made once, of short ones the median is taken."""

    def timed() -> float:
        start = time.perf_counter()
        for batch in batches:
            run(batch)
        return time.perf_counter() - start

    cold = timed()
    if cold > _LONG:
        return cold
    seconds = [timed()]
    while sum(seconds) < _TURN:
        seconds.append(timed())
    return statistics.median(seconds)


@contextlib.contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Processes that are started inside print into ``log``: libraries do, some as soon as they are imported."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    with log.open("a", encoding="utf-8") as file:
        for stream, _ in kept:
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


def _serve(peer: Peer, inputs: Path, pipe: Connection) -> None:
    serving: _Serving | None = None
    with contextlib.suppress(EOFError):  # the parent has closed its end
        while True:
            method, arguments = pipe.recv()
            try:
                serving = serving or _Serving(peer, inputs)
                answer = (False, getattr(serving, method)(*arguments))
            except Exception as error:  # listed beside the peer; the run goes on with the others
                answer = (True, f"{type(error).__name__}: {error}")
            pipe.send(answer)
