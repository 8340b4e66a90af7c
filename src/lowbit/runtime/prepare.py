"""From a loaded backbone to the layout that runs fastest, or smallest, on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from lowbit.errors import MissingExtraError, SchemeError, UnsupportedModelError
from lowbit.kernels import LEVELS, best_kernel
from lowbit.nn import QuantModule
from lowbit.runtime.latency import prepare_torch

MODES = ("latency", "memory")
BACKENDS = ("auto", "torch", "openvino")


def prepare(
    model: PreTrainedModel,
    *,
    mode: str = "latency",
    backend: str = "auto",
    calibration: Iterable[Any] | None = None,
) -> PreTrainedModel:
    """Turn a loaded backbone, with or without an adapter, into an execution layout, in place, and return it.

    The model keeps its class and its ``forward``, works in a ``transformers.pipeline``, and is for inference only. It
    stays on the CPU and is not to be saved; the directory that it was loaded from is what is stored.
    ``model.lowbit_runtime`` is the :class:`~lowbit.runtime.report.RuntimeReport`.

    ``mode`` is ``latency`` (int8 products) or ``memory`` (weights stay in their few bits). ``backend`` is ``torch``,
    ``openvino``, or ``auto``: OpenVINO where it is installed and this machine has no C kernels of ours.
    ``calibration``, texts or batches, fixes the ranges of activations for OpenVINO; the torch backend measures them per
    token as it runs. A model that is no backbone, is prepared already, is not on the CPU, or has static
    activations in the mode ``latency`` raises :class:`UnsupportedModelError`, a missing library
    :class:`MissingExtraError`.
    """
    if mode not in MODES or backend not in BACKENDS:
        raise SchemeError(f"mode is one of {', '.join(MODES)}, and backend one of {', '.join(BACKENDS)}")
    _check(model)
    if mode == "memory":
        if backend == "openvino":
            raise SchemeError("the memory mode runs on torch; leave the backend out")
        from lowbit.runtime.memory import prepare_memory

        return prepare_memory(model)
    if backend == "auto":
        backend = "openvino" if _has_openvino() and best_kernel()[0] not in LEVELS else "torch"
    if backend == "torch":
        return prepare_torch(model)
    if not _has_openvino():
        raise MissingExtraError("the backend openvino needs that library: pip install openvino")
    from lowbit.runtime.openvino import prepare_openvino

    return prepare_openvino(model, calibration)


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _check(model: PreTrainedModel) -> None:
    if hasattr(model, "lowbit_runtime"):
        raise UnsupportedModelError("the model is prepared already; load it again to prepare it in another way")
    if not any(isinstance(module, QuantModule) for module in model.modules()):
        raise UnsupportedModelError("the model has no quantized modules; make a backbone with `lowbit quantize` first")
    if model.device.type != "cpu":
        raise UnsupportedModelError(
            f"the model is on {model.device}, execution layouts are for the CPU; move it there, or use it as it is"
        )
