"""Int8Linear: a quantized linear in the execution layout of a CPU, and what a task adapter changes in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lowbit.errors import AdapterError
from lowbit.kernels import KERNELS, Rest, fold, fold_values, int8_linear, pack_weight
from lowbit.qtensor import QuantizedTensor, flat_positions


@dataclass(frozen=True)
class Patch:
    """What an adapter makes of one layer: ``codes`` int8 at flat ``places`` int32 of the packed codes, where the
    backbone has ``base``; and the layer's sums, scale and rest with them."""

    places: torch.Tensor
    codes: torch.Tensor
    base: torch.Tensor
    sums: torch.Tensor
    scale: torch.Tensor
    rest: Rest

    @property
    def nbytes(self) -> int:
        """Bytes that it holds in memory."""
        parts = (
            self.places,
            self.codes,
            self.base,
            self.sums,
            self.scale,
            self.rest.ptr,
            self.rest.col,
            self.rest.value,
        )
        return sum(part.nbytes for part in parts)


class Int8Linear(nn.Module):
    """``activation(x W^T + b)`` in int8, for inference only; made from a quantized W [out, in], and never stored.

    ``folded_error`` is the relative weight error that the layout adds. The tensor's outliers and their positions are
    kept, because task adapters change the weights there, or the steps that they are coded in.
    """

    def __init__(self, tensor: QuantizedTensor, bias: torch.Tensor | None, kernel: str) -> None:
        super().__init__()
        self.out_features, self.in_features = tensor.shape
        folded = fold(tensor, KERNELS[kernel].limits)
        self.layout = self._own = pack_weight(folded, bias, kernel)
        self.activation = "none"
        self.folded_error, self.exact_rows = folded.error, folded.exact_rows
        self._step = tensor.scale.float().view(-1) if folded.exact_rows == self.out_features else None
        self._flat = tensor.outlier_positions().to(torch.int32)
        self._places = self._places_of(self._flat)
        self._outliers = torch.empty(0) if tensor.outlier_value is None else tensor.outlier_value.detach().clone()
        self._active: Patch | None = None

    @property
    def bias(self) -> torch.Tensor:
        """The bias [out], float32, zeros where there is none; writing to it changes what is computed."""
        return self.layout.bias[: self.out_features]

    @property
    def weight(self) -> torch.Tensor:
        """Shape and dtype of the weight, for code that asks for them; it has no values."""
        return torch.empty(self.out_features, self.in_features, device="meta")

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] to [..., out], in the dtype of ``x``."""
        rows = x.reshape(-1, self.in_features).float()
        output = int8_linear(rows, self.layout, self.activation)
        return output.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def patch(
        self,
        outlier_value: torch.Tensor | None = None,
        outlier_ptr: torch.Tensor | None = None,
        outlier_col: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
    ) -> Patch:
        """What an adapter's tensors make of this layer; the layer stays as it is.

        ``outlier_value`` [n] stands at the backbone's positions, or at those of ``outlier_ptr`` and ``outlier_col``.
        ``scale`` are trained step sizes. Values that fit no positions, or step sizes of a weight whose codes are not
        kept exactly, raise :class:`AdapterError`.
        """
        active = self._active
        self.put(None)
        try:
            return self._patch(outlier_value, outlier_ptr, outlier_col, scale)
        finally:
            self.put(active)

    @torch.no_grad()
    def _patch(
        self,
        outlier_value: torch.Tensor | None,
        outlier_ptr: torch.Tensor | None,
        outlier_col: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> Patch:
        """:meth:`patch` of the backbone itself."""
        flat, places = self._flat.long(), self._places
        if outlier_ptr is not None and outlier_col is not None:
            flat = flat_positions(outlier_ptr, outlier_col, self.layout.shape)
            places = self._places_of(flat)
        if outlier_value is None:
            flat, places, values = flat[:0], places[:0], torch.empty(0)
        else:
            values = outlier_value.float()
        if values.numel() != flat.numel():
            raise AdapterError(f"the adapter has {values.numel()} values for {flat.numel()} positions; train it again")
        steps = self.layout.scale
        if scale is not None:
            kept = ~torch.isin(self._flat, flat)  # outliers that the step sizes do not move
            flat = torch.cat([flat, self._flat[kept].long()])
            values = torch.cat([values, self._outliers[kept].float()])
            places, steps = self._places_of(flat), self._rescaled(scale)
        codes, missing = fold_values(values, steps[flat // self.in_features], self.layout.limit)
        base = self._view[places]
        sums = self.layout.sums.index_add(0, flat // self.in_features, (codes.int() - base).to(torch.int32))
        return Patch(places, codes, base, sums, steps, self.layout.rest.updated(flat, missing, self.in_features))

    @torch.no_grad()
    def put(self, patch: Patch | None) -> None:
        """Make ``patch`` the active one; None is the backbone itself."""
        view, active = self._view, self._active
        if active is not None and (patch is None or patch.places is not active.places):
            view.scatter_(0, active.places.long(), active.base)
        self.layout = self._own
        if patch is not None:
            view.scatter_(0, patch.places.long(), patch.codes)
            self.layout = replace(self._own, sums=patch.sums, scale=patch.scale, rest=patch.rest)
        KERNELS[self.layout.kernel].note_sums(self.layout.packed, self.layout.sums, self.layout.shape)
        self._active = patch

    @property
    def _view(self) -> torch.Tensor:
        return KERNELS[self.layout.kernel].view(self.layout.packed)

    def _places_of(self, flat: torch.Tensor) -> torch.Tensor:
        """Flat positions in the weight as int32 places in the packed codes."""
        rows, columns = flat.long() // self.in_features, flat.long() % self.in_features
        return KERNELS[self.layout.kernel].places(rows, columns, self.layout.shape).to(torch.int32)

    def _rescaled(self, scale: torch.Tensor) -> torch.Tensor:
        """The steps of the layout when the step sizes of the weight are ``scale`` instead: its codes stay."""
        if self._step is None:
            raise AdapterError(
                "trained step sizes cannot be laid over codes that are not kept exactly; use it unprepared"
            )
        ratio = (scale.float().view(-1) / self._step).expand(self.out_features)
        return self.layout.scale * F.pad(ratio, (0, self.layout.scale.numel() - self.out_features))

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a prepared model cannot be copied or saved; save the backbone and prepare it after loading")

    def extra_repr(self) -> str:
        """Shape, kernel and activation, as ``print(model)`` shows them."""
        return f"out={self.out_features}, in={self.in_features}, {self.layout.kernel}, activation={self.activation}"
