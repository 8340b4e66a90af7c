"""torch by itself, and torchao: float, bf16 and dynamic int8, eager and compiled."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from lowbit.bench.peer import LastHidden, Peer, Run, Setting, as_run, no_compiler, read_model

FILE = "model.pt"


def compiled(model: LastHidden, setting: Setting) -> Run:
    """Compiled for each shape, or once for all where lengths vary."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64  # each shape counts as one
    model.compile(dynamic=setting.varied)
    return as_run(model)


def load_float(folder: Path, setting: Setting, *, dtype: torch.dtype = torch.float32, compile: bool = False) -> Run:
    """The model as transformers loads it."""
    torch.set_num_threads(setting.threads)
    model = read_model(folder, dtype)
    return compiled(model, setting) if compile else as_run(model)


def load_pickled(folder: Path, setting: Setting, *, compile: bool = False) -> Run:
    """A module that :func:`torch.save` wrote."""
    torch.set_num_threads(setting.threads)
    model = torch.load(folder / FILE, weights_only=False)
    return compiled(model, setting) if compile else as_run(model)


def to_bf16(source: Path, folder: Path, setting: Setting) -> None:
    """The checkpoint with half the bytes."""
    read_model(source, torch.bfloat16).model.save_pretrained(folder)


def dynamic_int8(source: Path, folder: Path, setting: Setting) -> None:
    """``torch.ao.quantization.quantize_dynamic``: int8 weights, activations quantized at each call."""
    from torch.ao.quantization import quantize_dynamic

    model: torch.nn.Module = read_model(source)
    torch.save(quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8), folder / FILE)


def torchao_int8(source: Path, folder: Path, setting: Setting) -> None:
    """torchao's int8 weights per channel, activations per token at each call."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = read_model(source)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    for module in model.modules():
        vars(module).pop("extra_repr", None)  # for printing only, and it cannot be pickled
    torch.save(model, folder / FILE)


_BF16 = torch.bfloat16

PEERS = (
    Peer("torch-fp32", ("torch",), load_float),
    Peer("torch-fp32-compile", ("torch",), partial(load_float, compile=True), lacks=no_compiler),
    Peer("torch-bf16", ("torch",), partial(load_float, dtype=_BF16), to_bf16),
    Peer("torch-bf16-compile", ("torch",), partial(load_float, dtype=_BF16, compile=True), to_bf16, no_compiler),
    Peer("torch-int8", ("torch",), load_pickled, dynamic_int8),
    Peer("torchao-int8", ("torchao",), load_pickled, torchao_int8),
    Peer("torchao-int8-compile", ("torchao",), partial(load_pickled, compile=True), torchao_int8, no_compiler),
)
