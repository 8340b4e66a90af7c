"""OpenVINO: float, default precision, and what NNCF makes: W8A8 from calibration, 8- and 4-bit weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowbit.bench.peer import Batch, Peer, Run, Setting, read_model

FILE = "model.xml"


def load(folder: Path, setting: Setting, **options: Any) -> Run:
    """Compiled for latency, with OpenVINO's own choice of precision unless an option says otherwise."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setting.threads}
    model = openvino.Core().compile_model(folder / FILE, "CPU", hints | options)

    def run(batch: Batch) -> torch.Tensor:
        return torch.from_numpy(model(as_arrays(batch))[0])

    return run


def export(source: Path, folder: Path, setting: Setting) -> None:
    """The float model with free numbers of rows and tokens, in fp32."""
    _save(_graph(source, setting), folder)


def w8a8(source: Path, folder: Path, setting: Setting) -> None:
    """NNCF post-training quantization for transformers, static ranges from all calibration batches."""
    import nncf

    quantized = nncf.quantize(
        _graph(source, setting),
        nncf.Dataset(setting.calibration, as_arrays),
        subset_size=len(setting.calibration),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    _save(quantized, folder)


def weights(source: Path, folder: Path, setting: Setting, *, mode: str, **options: Any) -> None:
    """NNCF weight compression."""
    import nncf

    _save(nncf.compress_weights(_graph(source, setting), mode=nncf.CompressWeightsMode[mode], **options), folder)


def as_arrays(batch: Batch) -> dict[str, Any]:
    """A batch in numpy."""
    return {name: tensor.numpy() for name, tensor in batch.items()}


def _graph(source: Path, setting: Setting) -> Any:
    import openvino

    with torch.no_grad():
        return openvino.convert_model(read_model(source), example_input=setting.calibration[0])


def _save(model: Any, folder: Path) -> None:
    import openvino

    openvino.save_model(model, folder / FILE, compress_to_fp16=False)


_load_fp32 = partial(load, INFERENCE_PRECISION_HINT="f32")
_load_weights = partial(load, DYNAMIC_QUANTIZATION_GROUP_SIZE=64)  # without, activations stay in float: 2-3x slower
_BOTH = ("openvino", "nncf")

PEERS = (
    Peer("openvino-fp32", ("openvino",), _load_fp32, export),
    Peer("openvino-default", ("openvino",), load, export),
    Peer("openvino-int8", _BOTH, load, w8a8),
    Peer("openvino-w8", _BOTH, _load_weights, partial(weights, mode="INT8_SYM")),
    Peer("openvino-w4", _BOTH, _load_weights, partial(weights, mode="INT4_SYM", group_size=64, ratio=1.0)),
)
