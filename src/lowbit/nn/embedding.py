"""Word embeddings over quantized tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lowbit.nn.payload import QuantModule, as_initialized
from lowbit.qtensor import QuantizedTensor


class QuantEmbedding(QuantModule):
    """Looks rows up in a quantized table [vocabulary, width]; only the rows asked for are unpacked.

    ``dtype`` is that of the rows it returns and follows ``.to(dtype)``, as for ``nn.Embedding``; they are multiplied by
    ``embed_scale``, as BART does.
    """

    def __init__(
        self,
        tensor: QuantizedTensor,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        embed_scale: float = 1.0,
    ) -> None:
        super().__init__(tensor)
        self.num_embeddings, self.embedding_dim = tensor.shape
        self.padding_idx = padding_idx
        self.dtype, self.embed_scale = dtype, embed_scale

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized table [vocabulary, width] in ``dtype``, made anew at each access."""
        return as_initialized(super().weight.to(self.dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` integer [...] to rows [..., width]."""
        return self.rows(ids) * self.embed_scale

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` integer [...] to unscaled rows [..., width]."""
        rows = self._rows(ids.reshape(-1))
        return rows.to(self.dtype).view(*ids.shape, self.embedding_dim)

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Float32 rows [n, width] of flat ids."""
        row_bits = self.embedding_dim * self.scheme.bits
        if self.outlier_value is not None or row_bits % 8 or self.scale.shape[0] == 1:
            return self.tensor.dequantize().index_select(0, ids)

        def pick(rows: torch.Tensor) -> torch.Tensor:
            return rows.view(self.num_embeddings, -1).index_select(0, ids)

        shared = self.scheme.codebook_shared
        picked = QuantizedTensor(
            shape=(ids.numel(), self.embedding_dim),
            scheme=self.scheme,
            weight=pick(self.codes).view(-1),
            scale=pick(self.scale),
            zero_point=None if self.zero_point is None else pick(self.zero_point),
            codebook=self.codebook
            if self.codebook is None or shared
            else pick(self.codebook).view(-1, 2**self.scheme.bits),
        )
        return picked.dequantize_dense()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)


class TiedQuantEmbedding(torch.nn.Module):
    """An embedding that shares the table of another one, as T5's encoder and decoder do; it stores nothing."""

    def __init__(self, source: QuantEmbedding, embed_scale: float = 1.0) -> None:
        super().__init__()
        self.embed_scale = embed_scale
        self._source = [source]  # in a list, so that the payload is registered, moved and saved once

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized table [vocabulary, width], made anew at each access."""
        return self._source[0].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids`` integer [...] to rows [..., width]."""
        return self._source[0].rows(ids) * self.embed_scale
