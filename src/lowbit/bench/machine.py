"""What the machine tells: its processor, resident memory, and what other processes did meanwhile."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import torch

_PROC = Path("/proc")


def processor() -> str:
    """Name of the processor and the widest instructions that torch uses on it."""
    file = _PROC / "cpuinfo"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    widest = "AMX" if torch.cpu._is_amx_tile_supported() else torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()} ({widest})"


def resident_bytes() -> int | None:
    """Resident memory of this process, what the C library has free given back; None where there is no /proc."""
    file = _PROC / "self" / "statm"
    if not file.exists():
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    return int(file.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class ForeignLoad:
    """Inside the ``with`` block: the mean number of processors that others than ``pids`` kept busy, in ``cores``.

    What a hypervisor takes away counts, too. None where there is no /proc.
    """

    def __init__(self, pids: Iterable[int], proc: Path = _PROC) -> None:
        self._pids, self._proc = list(pids), proc
        self.cores: float | None = None

    def __enter__(self) -> ForeignLoad:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        now = self._now()
        if now is not None and self._start is not None:
            (seconds, others), (before, others_before) = now, self._start
            self.cores = max(0.0, (others - others_before) / max(seconds - before, 1e-9))

    def _now(self) -> tuple[float, float] | None:
        """The time, and processor seconds of everybody else so far."""
        file = self._proc / "stat"
        if not file.exists():
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        busy = busy_ticks(file.read_text(encoding="utf-8"))
        own = 0
        for pid in self._pids:
            of_process = self._proc / str(pid) / "stat"
            own += process_ticks(of_process.read_text(encoding="utf-8")) if of_process.exists() else 0
        return time.perf_counter(), (busy - own) / ticks


def busy_ticks(stat: str) -> int:
    """Ticks that all processors were not idle, from /proc/stat: user, nice, system, both interrupts, stolen."""
    user, nice, system, _, _, interrupt, soft, stolen = map(int, stat.split("\n")[0].split()[1:9])
    return user + nice + system + interrupt + soft + stolen


def process_ticks(stat: str) -> int:
    """User and system ticks of a process, from /proc/PID/stat; its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
