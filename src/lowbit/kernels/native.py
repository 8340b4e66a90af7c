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

_SOURCE = Path(__file__).with_name("int8.c")
# No flag may let the linker add code that flushes denormals for the whole process, as -ffast-math does.
_FLAGS = ("-O3", "-mavx2", "-mfma", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fopenmp")
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


class WeightStruct(ctypes.Structure):
    """``Weight`` of ``int8.c``."""

    _fields_ = (
        ("out", _LONG),
        ("inputs", _LONG),
        ("scale", _POINTER),
        ("bias", _POINTER),
        ("sums", _POINTER),
        ("rest_ptr", _POINTER),
        ("rest_col", _POINTER),
        ("rest_value", _POINTER),
        ("activation", _INT),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where :func:`absence` says why there are none."""
    return _built()[0]


def absence() -> str:
    """Why there are no compiled kernels; empty where there are."""
    return _built()[1]


@cache
def _built() -> tuple[ctypes.CDLL | None, str]:
    if platform.system() != "Linux" or not torch.cpu._is_avx2_supported():
        return None, "the C kernels are for Linux on x86 with AVX2"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None, "no C compiler; install gcc"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.so"
        command = [compiler, *_FLAGS, "-shared", "-fPIC", str(_SOURCE), "-o", str(target), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            return None, f"{compiler} cannot compile the C kernels: {detail.strip().splitlines()[-1]}"
        loaded = ctypes.CDLL(str(target))  # which stays mapped when the file is gone
    arguments: list[type[Any]] = [_POINTER, _LONG, _POINTER, _POINTER, _INT, *[_POINTER] * 4, _INT]
    loaded.lowbit_linear.argtypes, loaded.lowbit_linear.restype = arguments, None
    return loaded, ""
