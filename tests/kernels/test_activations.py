import pytest
import torch

import lowbit
from lowbit.kernels import round_static, round_tokens
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
    assert round_static(sample(2, 8).to(dtype), torch.tensor([0.1])).dtype == dtype


def test_one_step_for_all_by_hand():
    x = torch.tensor([[0.2, -0.3, 0.75, 63.2], [63.6, 70.0, -1e9, 0.0]])
    assert round_static(x, torch.tensor([0.5])).tolist() == [[0.0, -0.5, 1.0, 63.0], [63.5, 63.5, -63.5, 0.0]]


def test_gradients_of_one_step_by_hand():
    """Inputs of 0.4, -1.4, 126.9 and 200 steps of 0.5: the last one is clipped."""
    x = torch.tensor([[0.2, -0.7], [63.45, 100.0]], requires_grad=True)
    step = torch.tensor([0.5], requires_grad=True)
    (round_static(x, step) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert x.grad.tolist() == [[1, 2], [3, 0]]
    expected = (1 * (0 - 0.4) + 2 * (-1 + 1.4) + 3 * (127 - 126.9) + 4 * 127) / (127 * 2) ** 0.5
    assert step.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 16), (3, 5, 16)], ids=str)
def test_the_gradients_of_one_step_are_those_of_the_published_pseudocode(shape):
    """Appendix A of LSQ, with autograd in the place of formulas of our own."""
    start, target, step = sample(*shape), sample(*shape, seed=1), torch.tensor([0.015])
    x, ours = start.clone().requires_grad_(), step.clone().requires_grad_()
    (round_static(x, ours) * target).sum().backward()
    other, theirs = start.clone().requires_grad_(), step.clone().requires_grad_()
    factor = 1 / (127 * shape[-1]) ** 0.5
    scaled = theirs * factor + (theirs - theirs * factor).detach()
    steps = (other / scaled).clamp(-127, 127)
    ((steps + (steps.round() - steps).detach()) * scaled * target).sum().backward()
    assert 0 < (x.grad == 0).sum() < x.numel() / 2
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_a_step_that_is_not_positive_is_harmless_and_can_come_back(value):
    x, step = sample(4, 8), torch.tensor([value], requires_grad=True)
    rounded = round_static(x, step)
    (rounded - x).square().sum().backward()
    assert rounded.isfinite().all()
    assert step.grad.item() < 0  # descent makes it larger


def test_a_layer_rounds_its_input_where_the_scheme_says_so():
    weight, x = sample(6, 16), sample(3, 16, seed=1)
    with_rounding = QuantLinear(quantize_tensor(weight, Scheme.parse("w8a8")))
    plain = QuantLinear(quantize_tensor(weight, Scheme.parse("w8")))
    assert torch.equal(with_rounding.weight, plain.weight)
    assert torch.equal(with_rounding(x), plain(round_tokens(x)))
    assert not torch.equal(with_rounding(x), plain(x))
    step = torch.tensor([0.02])
    static = QuantLinear(quantize_tensor(weight, Scheme.parse("w8a8s"), input_scale=step))
    assert torch.equal(static(x), plain(round_static(x, step)))
    assert not torch.equal(static(x), with_rounding(x))


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_stored_model_rounds_its_inputs_again(tiny, arch):
    plain, rounding = lowbit.load(tiny.backbone(arch, recipe="w8")), lowbit.load(tiny.backbone(arch, recipe="w8a8"))
    assert all(m.scheme.activations == "dynamic" for m in rounding.modules() if isinstance(m, QuantLinear))
    before, after = output(plain), output(rounding)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, before, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_stored_model_rounds_its_inputs_by_the_stored_steps(tiny, arch):
    plain, dynamic, static = (output(lowbit.load(tiny.backbone(arch, recipe=r))) for r in ("w8", "w8a8", "w8a8s"))
    assert not torch.equal(static, plain)
    assert not torch.equal(static, dynamic)
    assert (static - plain).norm() < 0.08 * plain.norm()
