"""The base of quantized modules: a QuantizedTensor held in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lowbit.errors import SchemeError
from lowbit.kernels import WeightCache
from lowbit.packing import packed_size
from lowbit.qtensor import QuantizedTensor, tensor_specs
from lowbit.scheme import Scheme

CODES = "codes"  # the buffer's name; on disk the codes are called ``weight``
_PARAMETERS = ("scale", "zero_point", "codebook", "outlier_ptr", "outlier_col", "outlier_value", "input_scale")
_CACHE_DTYPES = (torch.bfloat16, torch.float32)


class QuantModule(nn.Module):
    """Holds a weight [out, in] as buffers ``codes, scale, zero_point, codebook, outlier_ptr, outlier_col,
    outlier_value, input_scale``.

    The buffers keep their dtype through ``.to(dtype)`` and ``.half()``: they are the stored form, and the
    result follows the dtype of the input. Training promotes ``outlier_value`` (and ``scale``) to parameters.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    codebook: torch.Tensor | None
    outlier_ptr: torch.Tensor | None
    outlier_col: torch.Tensor | None
    outlier_value: torch.Tensor | None
    input_scale: torch.Tensor | None

    def __init__(self, tensor: QuantizedTensor) -> None:
        super().__init__()
        self.scheme = tensor.scheme
        self.shape = tensor.shape
        for name in _PARAMETERS:
            self.register_buffer(name, getattr(tensor, name))
        self.register_buffer(CODES, tensor.weight)
        self._cache_dtype: torch.dtype | None = None
        self._cache: WeightCache | None = None

    @property
    def tensor(self) -> QuantizedTensor:
        """The payload as a value; it shares memory with the module."""
        return QuantizedTensor(
            shape=self.shape,
            scheme=self.scheme,
            weight=self.codes,
            scale=self.scale,
            zero_point=self.zero_point,
            codebook=self.codebook,
            outlier_ptr=self.outlier_ptr,
            outlier_col=self.outlier_col,
            outlier_value=self.outlier_value,
            input_scale=self.input_scale,
        )

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized float32 weight [out, in], made anew at each access; writing to it changes nothing."""
        return as_initialized(
            torch.empty(self.shape, device="meta") if self.codes.is_meta else self.tensor.dequantize()
        )

    def train_payload(self, name: str) -> torch.nn.Parameter:
        """Turn ``outlier_value`` or ``scale`` into a float32 parameter that can be trained."""
        value = getattr(self, name)
        del self._buffers[name]
        parameter = nn.Parameter(value.detach().float().clone())
        self.register_parameter(name, parameter)
        return parameter

    def freeze_payload(self, name: str) -> None:
        """Turn a trained parameter back into a buffer of its stored dtype."""
        value = self.payload()[name]
        del self._parameters[name]
        self.register_buffer(name, value)

    def cache(self, dtype: torch.dtype | None) -> None:
        """Keep a decoded copy of what is frozen for products in ``dtype``, bfloat16 or float32; None keeps none.

        Results are bit for bit the same, with and without. The copy is made at the next use, and anew after codes or
        frozen step sizes have changed; it is neither saved nor copied nor moved with the module. Another ``dtype``
        raises :class:`SchemeError`.
        """
        if dtype is not None and dtype not in _CACHE_DTYPES:
            raise SchemeError(f"a weight cannot be cached in {dtype}; use torch.bfloat16 or torch.float32")
        self._cache_dtype, self._cache = dtype, None

    def cached(self) -> WeightCache | None:
        """The copy that :meth:`cache` asks for, up to date; None where none is asked for."""
        if self._cache_dtype is None:
            return None
        tensor, trained = self.tensor, isinstance(self.scale, nn.Parameter)
        if self._cache is None or self._cache.trained_scale != trained or not self._cache.fits(tensor):
            self._cache = None  # first, so that there are never two
            self._cache = WeightCache(tensor, self._cache_dtype, trained_scale=trained)
        return self._cache

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def payload(self) -> dict[str, torch.Tensor]:
        """The stored tensors by their names on disk, values in 16 bits even while they are trained in 32."""
        tensors = self.tensor.to_tensors()
        specs = tensor_specs(self.scheme, self.shape, self.tensor.outlier_count)
        return {name: value.detach().to(specs[name][0]) for name, value in tensors.items()}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self._cache = None
        values = [value for name in (CODES, *_PARAMETERS) if (value := getattr(self, name)) is not None]
        gradients = [value.grad for value in values if value.grad is not None]  # one dtype with what is trained
        stored = {id(tensor) for tensor in (*values, *gradients)}

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            if id(tensor) not in stored or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        """Shape and scheme, as ``print(model)`` shows them."""
        out_features, in_features = self.shape
        return f"out={out_features}, in={in_features}, scheme={self.scheme}, outliers={self.tensor.outlier_count}"


def as_initialized(weight: torch.Tensor) -> torch.Tensor:
    """``weight``, marked so that transformers' initialisers keep away from it."""
    weight._is_hf_initialized = True  # type: ignore[attr-defined]
    return weight


def empty_tensor(scheme: Scheme, shape: tuple[int, int], outliers: int | None = None) -> QuantizedTensor:
    """A payload of the right names, shapes and dtypes on the meta device, to be filled by a loader."""
    specs = tensor_specs(scheme, shape, outliers)
    assert specs["weight"][1] == (packed_size(shape[0] * shape[1], scheme.bits),)
    tensors = {name: torch.empty(size, dtype=dtype, device="meta") for name, (dtype, size) in specs.items()}
    return QuantizedTensor(shape=shape, scheme=scheme, **tensors)
