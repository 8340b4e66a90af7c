"""Linear layers over quantized weights."""

from __future__ import annotations

import torch
from torch import nn

from lowbit.kernels import quant_linear, round_inputs
from lowbit.nn.embedding import QuantEmbedding
from lowbit.nn.payload import QuantModule
from lowbit.qtensor import QuantizedTensor


class QuantLinear(QuantModule):
    """``y = x W^T + b`` with a quantized W [out, in]; stands in for ``nn.Linear`` and for ``Conv1D``.

    Where the scheme asks for it, ``x`` is rounded to 8 bits first, per token or by a stored step. It is deliberately no
    ``nn.Linear``: libraries that would silently replace or merge its weight refuse it.
    """

    def __init__(self, tensor: QuantizedTensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(tensor)
        self.bias = _parameter(bias)
        self.out_features, self.in_features = tensor.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] to [..., out], in the dtype of ``x`` (or of autocast)."""
        x = round_inputs(x, self.scheme.activations, self.input_scale)
        return quant_linear(x, self.tensor, self.bias, self.cached())


class TiedQuantLinear(nn.Module):
    """An output projection that reads the payload of the embedding it is tied to; it stores only a bias."""

    def __init__(self, source: QuantEmbedding, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self._source = [source]  # in a list, so that the payload is registered, moved and saved once
        self.bias = _parameter(bias)
        self.out_features, self.in_features = source.shape

    @property
    def source(self) -> QuantEmbedding:
        """The embedding whose payload this projection shares."""
        return self._source[0]

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight [vocabulary, width], made anew at each access."""
        return self.source.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., width] to scores [..., vocabulary], in the dtype of ``x`` (or of autocast)."""
        return quant_linear(x, self.source.tensor, self.bias, self.source.cached())


def _parameter(bias: torch.Tensor | None) -> nn.Parameter | None:
    """A bias as a parameter; one that is a parameter already stays the same object, which keeps its ties."""
    return bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())
