import pytest
import torch
import torch.nn.functional as F

from lowbit.kernels import block_linear, blocks, row_blocks
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme

SCHEMES = {
    "w4": Scheme(),
    "w2": Scheme(bits=2),
    "w3": Scheme(bits=3),
    "w5o0": Scheme(bits=5, outliers=None),
    "w8": Scheme(bits=8),
    "w8o0": Scheme(bits=8, outliers=None),
    "w8to0": Scheme(bits=8, granularity="tensor", outliers=None),
    "w4t": Scheme(granularity="tensor"),
    "w4g8": Scheme(granularity="group", group_size=8),
    "asymmetric": Scheme(symmetric=False, strategy="minmax"),
    "kmeans": Scheme(bits=3, strategy="kmeans"),
    "shared": Scheme(bits=3, strategy="kmeans", levels="shared-codebook"),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rows", [1, 8, 21, 40])
def test_blocks_give_the_product_of_the_whole_weight(name, rows, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", 8 * 24)
    draw = torch.Generator().manual_seed(0)
    tensor = quantize_tensor(torch.randn(rows, 24, generator=draw), SCHEMES[name])
    assert torch.equal(torch.cat([block.dequantize() for _, block in row_blocks(tensor)]), tensor.dequantize())
    assert max(block.shape[0] for _, block in row_blocks(tensor)) <= 8
    bias = torch.randn(rows, generator=draw)
    for tokens in (0, 1, 5):
        x = torch.randn(tokens, 24, generator=draw)
        for term in (bias, None):
            expected = F.linear(x, tensor.dequantize(), term)
            torch.testing.assert_close(block_linear(x, tensor, term), expected, rtol=1e-5, atol=1e-5)
