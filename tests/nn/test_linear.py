from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowbit.nn import QuantEmbedding, QuantLinear, TiedQuantLinear
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Tied(nn.Module):
    """A vocabulary of 7, width 12, read at both ends."""

    def __init__(self):
        super().__init__()
        self.embedding = QuantEmbedding(quantize_tensor(gaussian(7, 12), Scheme(bits=8, outliers=None)))
        self.head = TiedQuantLinear(self.embedding, torch.arange(7.0))

    def forward(self, ids):
        return self.head(self.embedding(ids))


@pytest.mark.parametrize("bias", [None, torch.arange(5.0)], ids=["without bias", "with bias"])
@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 3, 9)], ids=str)
def test_linear_is_the_product_with_its_weight(shape, bias):
    tensor = quantize_tensor(gaussian(5, 9), Scheme(bits=3, outliers=OutlierRule(share=0.1)))
    module, x = QuantLinear(tensor, bias), gaussian(*shape, seed=1)
    torch.testing.assert_close(module(x), F.linear(x, tensor.dequantize(), bias))
    assert (module.in_features, module.out_features) == (9, 5)
    assert not isinstance(module, nn.Linear)


def test_bias_is_a_parameter_and_trains():
    module = QuantLinear(quantize_tensor(gaussian(5, 9), Scheme()), torch.zeros(5))
    assert isinstance(module.bias, nn.Parameter)
    module(gaussian(4, 9)).sum().backward()
    assert module.bias.grad.tolist() == [4] * 5


def test_a_bias_that_is_a_parameter_already_keeps_its_ties():
    model, bias = Tied(), nn.Parameter(torch.zeros(7))
    assert TiedQuantLinear(model.embedding, bias).bias is bias
    assert QuantLinear(model.embedding.tensor, bias).bias is bias


def test_tied_projection_is_the_product_with_the_table():
    model, x = Tied(), gaussian(2, 3, 12, seed=1)
    expected = F.linear(x, model.embedding.weight, torch.arange(7.0))
    torch.testing.assert_close(model.head(x), expected)
    assert torch.equal(model.head.weight, model.embedding.weight)
    assert (model.head.in_features, model.head.out_features) == (12, 7)
    assert model.head.source is model.embedding


def test_tied_projection_registers_only_its_bias():
    model = Tied()
    assert list(model.head.state_dict()) == ["bias"]
    assert list(TiedQuantLinear(model.embedding).state_dict()) == []
    assert set(model.state_dict()) == {"embedding.codes", "embedding.scale", "head.bias"}
    assert [name for name, _ in model.named_modules()] == ["", "embedding", "head"]


def test_tied_projection_follows_a_copy_of_the_whole_model():
    model = Tied()
    before = model.head.weight
    copy = deepcopy(model)
    assert copy.head.source is copy.embedding
    copy.embedding.scale.mul_(2)
    assert torch.equal(copy.head.weight, 2 * before)
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tied_projection_follows_to(dtype):
    model = Tied()
    before = model.head.weight
    model.to(dtype)
    assert model(torch.arange(7)).dtype == model.head.bias.dtype == dtype
    assert torch.equal(model.head.weight, before.to(dtype))
    assert model.to("meta").head.weight.device.type == "meta"


def test_tied_projection_uses_the_cache_of_the_table():
    model, x = Tied(), gaussian(2, 3, 12, seed=1)
    expected = model.head(x)
    model.embedding.cache(torch.float32)
    assert torch.equal(model.head(x), expected)
    assert model.embedding._cache is not None
