"""A decoded copy of a quantized weight, for layers that are used again and again and whose codes stay as they are."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowbit.qtensor import QuantizedTensor


class WeightCache:
    """What of one weight [out, in] stays the same while it is trained, decoded once for products in ``dtype``.

    That is the weight itself, whose outliers are put in place anew at each use, or, where the ``scale`` is trained,
    the weight in units of it. The second is kept in float16, which holds the levels of every grid exactly.
    """

    def __init__(self, tensor: QuantizedTensor, dtype: torch.dtype, *, trained_scale: bool) -> None:
        self.dtype, self.trained_scale = dtype, trained_scale
        self._origin = [(part, _version(part)) for part in self._frozen(tensor)]
        with torch.inference_mode(False), torch.no_grad():  # written to later, which inference tensors do not allow
            self._positions = tensor.outlier_positions()
            if trained_scale:
                self._dense = unit_weight(tensor).half()
            else:
                self._dense = tensor.dequantize_dense().to(dtype)

    def fits(self, tensor: QuantizedTensor) -> bool:
        """Whether the copy was made of this tensor's codes, zero points, codebook and frozen step sizes as they are."""
        frozen = self._frozen(tensor)
        return len(frozen) == len(self._origin) and all(
            one is other and _version(one) == version
            for one, (other, version) in zip(frozen, self._origin, strict=True)
        )

    @torch.no_grad()
    def weight(self, tensor: QuantizedTensor) -> torch.Tensor:
        """``tensor.dequantize(self.dtype)``, bit for bit; it may change at the next call and must not be written to."""
        dense = scaled(self._dense.float(), tensor.scale) if self.trained_scale else self._dense
        if tensor.outlier_value is not None:
            dense.view(-1).index_copy_(0, self._positions, tensor.outlier_value.to(dense.dtype))
        return dense.to(self.dtype)

    def _frozen(self, tensor: QuantizedTensor) -> list[torch.Tensor]:
        scale = None if self.trained_scale else tensor.scale
        parts = (tensor.weight, tensor.zero_point, tensor.codebook, tensor.outlier_ptr, tensor.outlier_col, scale)
        return [part for part in parts if part is not None]


def unit_weight(tensor: QuantizedTensor) -> torch.Tensor:
    """The decoded float32 weight [out, in] in units of its step sizes, without outliers."""
    return replace(tensor, scale=torch.ones_like(tensor.scale)).dequantize_dense()


def scaled(units: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A float32 weight in units of its step sizes ``scale`` [1, 1], [out, 1] or [out, groups], multiplied in place."""
    blocks = units.view(units.shape[0], scale.shape[1], -1)
    return blocks.mul_(scale.float()[:, :, None]).view(units.shape)


def _version(tensor: torch.Tensor) -> int:
    """Counts changes in place. Inference tensors do not count, and are not changed outside inference mode."""
    return 0 if tensor.is_inference() else tensor._version
