"""ONNX Runtime: fp32, dynamic int8, and 4-bit weights in MatMulNBits."""

from __future__ import annotations

from pathlib import Path

import torch

from lowbit.bench.peer import Batch, Peer, Run, Setting, read_model

FILE = "model.onnx"


def load(folder: Path, setting: Setting) -> Run:
    """A session with all of ONNX Runtime's graph optimizations, its default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])

    return run


def export(source: Path, folder: Path, setting: Setting) -> None:
    """The float model as a graph with free numbers of rows and tokens.

    The older exporter is used: it needs no package beyond onnx.
    """
    example = setting.calibration[0]
    names = [*example, "hidden"]
    with torch.inference_mode():
        torch.onnx.export(
            read_model(source),
            (),
            folder / FILE,
            kwargs=example,
            input_names=[*example],
            output_names=["hidden"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names},
            opset_version=17,
            dynamo=False,
        )


def dynamic_int8(source: Path, folder: Path, setting: Setting) -> None:
    """``quantize_dynamic`` with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    export(source, folder, setting)
    quantize_dynamic(folder / FILE, folder / FILE)


def int4(source: Path, folder: Path, setting: Setting) -> None:
    """Symmetric 4 bits in blocks of 32; accuracy level 4 lets the kernel quantize activations to int8."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    export(source, folder, setting)
    quantizer = MatMulNBitsQuantizer(onnx.load(folder / FILE), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / FILE))


PEERS = (
    Peer("ort-fp32", ("onnxruntime", "onnx"), load, export),
    Peer("ort-int8", ("onnxruntime", "onnx"), load, dynamic_int8),
    Peer("ort-int4", ("onnxruntime", "onnx", "onnx_ir"), load, int4),
)
