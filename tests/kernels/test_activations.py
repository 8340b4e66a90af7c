import pytest
import torch

import lowbit
from lowbit.errors import SchemeError
from lowbit.kernels import round_tokens
from lowbit.nn import QuantLinear
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme
from tests.models import output
from tests.tiny import BACKBONES


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_each_token_has_255_levels_of_its_own():
    x = sample(3, 4, 1000) * torch.tensor([1e-3, 1.0, 1e3, 0.0])[:, None]
    rounded = round_tokens(x)
    for before, after in zip(x.flatten(0, 1), rounded.flatten(0, 1), strict=True):
        step = before.abs().max() / 127
        if step == 0:
            assert torch.equal(after, before)
            continue
        codes = after / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
        assert codes.abs().max().round() == 127
        assert (after - before).abs().max() <= step * 0.5001


def test_gradients_pass_straight_through():
    x = sample(2, 8).requires_grad_()
    grad = sample(2, 8, seed=1)
    (round_tokens(x) * grad).sum().backward()
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays(dtype):
    assert round_tokens(sample(2, 8).to(dtype)).dtype == dtype


def test_a_layer_rounds_its_input_where_the_scheme_says_so():
    weight, x = sample(6, 16), sample(3, 16, seed=1)
    with_rounding = QuantLinear(quantize_tensor(weight, Scheme.parse("w8a8")))
    plain = QuantLinear(quantize_tensor(weight, Scheme.parse("w8")))
    assert torch.equal(with_rounding.weight, plain.weight)
    assert torch.equal(with_rounding(x), plain(round_tokens(x)))
    assert not torch.equal(with_rounding(x), plain(x))


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_stored_model_rounds_its_inputs_again(tiny, arch):
    plain, rounding = lowbit.load(tiny.backbone(arch, recipe="w8")), lowbit.load(tiny.backbone(arch, recipe="w8a8"))
    assert all(m.scheme.activations == "dynamic" for m in rounding.modules() if isinstance(m, QuantLinear))
    before, after = output(plain), output(rounding)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, rtol=0.1, atol=0.1)


def test_embeddings_have_no_inputs_to_round():
    with pytest.raises(SchemeError, match="no inputs to round"):
        lowbit.Recipe.parse({"scheme": "w4a8", "embeddings": {"bits": 8, "outliers": None, "activations": "dynamic"}})
