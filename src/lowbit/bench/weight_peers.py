"""Libraries that keep the weights of torch linears in few bits: optimum-quanto, bitsandbytes and HQQ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lowbit.bench.peer import Batch, LastHidden, Peer, Run, Setting, read_model
from lowbit.bench.torch_peers import FILE, load_pickled


def quanto(source: Path, folder: Path, setting: Setting, *, qtype: str) -> None:
    """optimum-quanto, weights only, frozen."""
    from optimum import quanto as library

    model = read_model(source)
    library.quantize(model, weights=getattr(library, qtype))
    library.freeze(model)
    torch.save(model, folder / FILE)


def load_without_grad(folder: Path, setting: Setting) -> Run:
    """For tensor classes that inference mode refuses."""
    torch.set_num_threads(setting.threads)
    model = torch.load(folder / FILE, weights_only=False)

    def run(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch)

    return run


def bitsandbytes_int8(source: Path, folder: Path, setting: Setting) -> None:
    """LLM.int8() with its default threshold."""
    from bitsandbytes.nn import Linear8bitLt

    def convert(linear: torch.nn.Linear) -> torch.nn.Module:
        made = Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, threshold=6.0
        )
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    torch.save(replaced(read_model(source), convert), folder / FILE)


def bitsandbytes_nf4(source: Path, folder: Path, setting: Setting) -> None:
    """NF4, computing in fp32."""
    from bitsandbytes.nn import Linear4bit

    def convert(linear: torch.nn.Linear) -> torch.nn.Module:
        made = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, torch.float32, quant_type="nf4"
        )
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    torch.save(replaced(read_model(source), convert), folder / FILE)


def hqq(source: Path, folder: Path, setting: Setting) -> None:
    """HQQ, 4 bits in groups of 64, computing in fp32."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)

    def convert(linear: torch.nn.Linear) -> torch.nn.Module:
        return HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")

    torch.save(replaced(read_model(source), convert), folder / FILE)


def load_hqq(folder: Path, setting: Setting) -> Run:
    """HQQ's linears have no forward until a backend is chosen."""
    from hqq.core.quantize import HQQBackend, HQQLinear

    HQQLinear.set_backend(HQQBackend.PYTORCH)
    return load_pickled(folder, setting)


def replaced(model: LastHidden, convert: Callable[[torch.nn.Linear], torch.nn.Module]) -> LastHidden:
    """``model`` with every linear converted in place."""
    found = [(name, module) for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    for name, module in found:
        model.set_submodule(name, convert(module))
    return model


PEERS = (
    Peer("quanto-w8", ("optimum.quanto",), load_without_grad, partial(quanto, qtype="qint8")),
    Peer("quanto-w4", ("optimum.quanto",), load_without_grad, partial(quanto, qtype="qint4")),
    Peer("bitsandbytes-int8", ("bitsandbytes",), load_pickled, bitsandbytes_int8),
    Peer("bitsandbytes-nf4", ("bitsandbytes",), load_pickled, bitsandbytes_nf4),
    Peer("hqq-w4", ("hqq",), load_hqq, hqq),
)
