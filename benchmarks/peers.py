"""Weights of other libraries: one matrix quantized by each, read back as float, and what it takes to store.

Weights are handed over in float16, the dtype these libraries are used with, so that step sizes which take the weight's
dtype count 16 bits. Counted are codes, step sizes and zeros; tables that are the same for every weight are not, and
codes that a library keeps in whole bytes without packing count as if they were packed.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch

Stored = tuple[torch.Tensor, int]  # the dequantized weight, float [out, in], and the bits of what is stored


@dataclass(frozen=True)
class Peer:
    """A library by its package name, one of its options in words, and what quantizes a float16 weight [out, in]."""

    package: str
    option: str
    quantize: Callable[[torch.Tensor], Stored]

    @property
    def version(self) -> str | None:
        """The installed version; None where the package is absent."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def stored_bits(*tensors: torch.Tensor) -> int:
    """Bits of the tensors as they are in memory."""
    return sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors)


def quanto(name: str, optimizer: str) -> Callable[[torch.Tensor], Stored]:
    """optimum-quanto: ``qint8`` per channel; narrower types in groups of 128, the default where it divides."""

    def quantize(weight: torch.Tensor) -> Stored:
        from optimum import quanto as library

        qtype = getattr(library, name)
        find = getattr(library, optimizer)()
        if qtype.bits == 8:
            tensor = library.quantize_weight(weight, qtype, 0, find(weight, qtype, axis=0), optimized=False)
            return tensor.dequantize(), stored_bits(tensor._data, tensor._scale)
        scale, shift = find(weight, qtype, axis=0, group_size=128)
        tensor = library.quantize_weight(weight, qtype, 0, scale, shift, group_size=128, optimized=False)
        return tensor.dequantize(), stored_bits(tensor._data._data, tensor._scale, tensor._shift)

    return quantize


def hqq(bits: int, axis: int) -> Callable[[torch.Tensor], Stored]:
    """HQQ in groups of 64 along ``axis``: 1 for rows, as its quick kernels need it, 0 for columns."""

    def quantize(weight: torch.Tensor) -> Stored:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        linear = HQQLinear.from_weights(weight.clone(), None, config, compute_dtype=torch.float16, device="cpu")
        return linear.dequantize(), stored_bits(linear.W_q, linear.meta["scale"], linear.meta["zero"])

    return quantize


def nf4(double: bool) -> Callable[[torch.Tensor], Stored]:
    """bitsandbytes NF4 in blocks of 64, the block maxima in float32 or (``double``) in 8 bits."""

    def quantize(weight: torch.Tensor) -> Stored:
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        nested = (state.state2.absmax, state.offset) if double else ()
        return functional.dequantize_4bit(codes, state), stored_bits(codes, state.absmax, *nested)

    return quantize


def torchao_int8(weight: torch.Tensor) -> Stored:
    """torchao's 8-bit weights with one step size per channel."""
    from torchao.quantization import Int8WeightOnlyConfig

    tensor = _torchao(weight, Int8WeightOnlyConfig(set_inductor_config=False))
    return tensor.dequantize(), stored_bits(tensor.qdata, tensor.scale)


def torchao_intx(bits: int, mapping: str, algorithm: str = "affine") -> Callable[[torch.Tensor], Stored]:
    """torchao's ``bits``-bit weights in groups of 64; zeros are counted for the asymmetric mapping."""

    def quantize(weight: torch.Tensor) -> Stored:
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"),
            granularity=PerGroup(64),
            mapping_type=MappingType[mapping],
            intx_choose_qparams_algorithm=algorithm,
        )
        tensor = _torchao(weight, config)
        zeros = (tensor.zero_point,) if mapping == "ASYMMETRIC" else ()
        return tensor.dequantize(), bits * tensor.qdata.numel() + stored_bits(tensor.scale, *zeros)

    return quantize


def _torchao(weight: torch.Tensor, config: object) -> torch.Tensor:
    """The quantized weight of a linear layer under a configuration of torchao."""
    from torchao.quantization import quantize_

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight.data = weight.clone()
    quantize_(linear, config)
    return linear.weight


PEERS = (
    Peer("optimum-quanto", "qint8", quanto("qint8", "AbsmaxOptimizer")),
    *(Peer("optimum-quanto", f"{name}, groups of 128", quanto(name, "MaxOptimizer")) for name in ("qint4", "qint2")),
    *(
        Peer("optimum-quanto", f"{name}, groups of 128, hqq", quanto(name, "HqqOptimizer"))
        for name in ("qint4", "qint2")
    ),
    *(Peer("hqq", f"{bits} bits, groups of 64", hqq(bits, axis=1)) for bits in (8, 4, 3, 2)),
    *(Peer("hqq", f"{bits} bits, groups of 64, axis 0", hqq(bits, axis=0)) for bits in (8, 4, 3, 2)),
    Peer("bitsandbytes", "nf4", nf4(double=False)),
    Peer("bitsandbytes", "nf4, double quantization", nf4(double=True)),
    Peer("torchao", "int8", torchao_int8),
    *(Peer("torchao", f"int{bits}, groups of 64", torchao_intx(bits, "SYMMETRIC")) for bits in (4, 3, 2)),
    *(Peer("torchao", f"int{bits}, groups of 64, asymmetric", torchao_intx(bits, "ASYMMETRIC")) for bits in (4, 3, 2)),
    *(
        Peer("torchao", f"int{bits}, groups of 64, hqq", torchao_intx(bits, "SYMMETRIC", "hqq_scale_only"))
        for bits in (4, 3, 2)
    ),
)
