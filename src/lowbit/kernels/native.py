"""The C kernels: compiled at first use where there is a compiler, into a library of this process alone."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SOURCE = Path(__file__).parent / "c" / "int8.c"
# No flag may let the linker add code that flushes denormals for the whole process, as -ffast-math does.
_FLAGS = ("-O3", "-mavx2", "-mfma", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fopenmp")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
# By the instructions that products are formed with, the best first.
LEVELS = {"amx": (*_AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16", "-mavx512bf16"), "vnni": _AVX512, "avx2": ()}
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


_SIGNATURES: dict[str, tuple[list[type[Any]], type[Any] | None]] = {
    "lowbit_linear": ([_POINTER, _POINTER, _LONG, *[_POINTER] * 4, _INT], None),
    "lowbit_project": ([_POINTER, _POINTER, _POINTER, _LONG, _INT], None),
    "lowbit_layer": ([*[_POINTER] * 4, _LONG, _POINTER, _LONG, _LONG, _POINTER, _INT], _INT),
    "lowbit_feed": ([_POINTER, _POINTER, _POINTER, _LONG, _POINTER, _INT], None),
}


class WeightStruct(ctypes.Structure):
    """``Weight`` of ``int8.c``."""

    _fields_ = (
        ("out", _LONG),
        ("inputs", _LONG),
        ("limit", _LONG),
        ("codes", _POINTER),
        ("scale", _POINTER),
        ("bias", _POINTER),
        ("sums", _POINTER),
        ("rest_ptr", _POINTER),
        ("rest_row", _POINTER),
        ("rest_col", _POINTER),
        ("rest_value", _POINTER),
        ("activation", _LONG),
    )


class LayerStruct(ctypes.Structure):
    """``Layer`` of ``layer.h``."""

    _fields_ = (
        *((name, WeightStruct) for name in ("query", "key", "value", "attended", "inner", "outer")),
        *((name, _POINTER) for name in ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")),
        *((name, ctypes.c_float) for name in ("epsilon1", "epsilon2", "scaling")),
        ("heads", _LONG),
    )


class RoomStruct(ctypes.Structure):
    """``Room`` of ``layer.h``."""

    _fields_ = (
        *((name, _POINTER) for name in ("query", "key", "value", "attended", "sum", "inner", "codes")),
        *((name, _POINTER) for name in ("steps", "zeros")),
        ("half", _LONG),
    )


def supported(level: str) -> bool:
    """Whether this machine has the instructions of a level, and the system lets a process use them."""
    if platform.system() != "Linux" or not torch.cpu._is_avx2_supported():
        return False
    if level == "avx2":
        return True
    has_vnni = torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported()
    return has_vnni and (level == "vnni" or (torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()))


def library(level: str) -> ctypes.CDLL | None:
    """The kernels compiled for a level that this machine supports; None where :func:`absence` says why not."""
    return _built(level)[0]


def absence(level: str) -> str:
    """Why there are no compiled kernels of a level; empty where there are."""
    return _built(level)[1]


@cache
def _built(level: str) -> tuple[ctypes.CDLL | None, str]:
    if not supported(level):
        return None, f"the C kernels are for Linux on x86 with {level.upper()}"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None, "no C compiler; install gcc"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.so"
        command = [compiler, *_FLAGS, *LEVELS[level], "-shared", "-fPIC", str(_SOURCE), "-o", str(target), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            return None, f"{compiler} cannot compile the C kernels: {detail.strip().splitlines()[-1]}"
        loaded = ctypes.CDLL(str(target))  # which stays mapped when the file is gone
    for name, (arguments, result) in _SIGNATURES.items():
        if hasattr(loaded, name):
            getattr(loaded, name).argtypes, getattr(loaded, name).restype = arguments, result
    return loaded, ""
