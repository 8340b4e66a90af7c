import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from lowbit.errors import SchemeError, WeightError
from lowbit.nn import FakeQuantLinear, QuantLinear
from lowbit.qtensor import QuantizedTensor, quantize_tensor, tensor_specs
from lowbit.scheme import OutlierRule, Scheme
from lowbit.strategies.grid import limits


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fake(weight, scheme, bias=None, step=None):
    return FakeQuantLinear(weight, quantize_tensor(weight, scheme, input_scale=step), bias)


@st.composite
def trained(draw):
    """A fake quantizer whose every value has moved since it was made."""
    granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    group = draw(st.integers(2, 9)) if granularity == "group" else None
    share = draw(st.none() | st.floats(0.001, 0.5))
    scheme = Scheme(
        bits=draw(st.integers(2, 8)),
        levels=draw(st.sampled_from(["full", "midrise"])),
        granularity=granularity,
        group_size=group,
        strategy=draw(st.sampled_from(["hqq", "lsq", "minmax", "mse", "percentile", "sigma"])),
        outliers=None if share is None else OutlierRule(share=share),
    )
    columns = draw(st.integers(1, 8)) * (group or draw(st.integers(1, 5)))
    size = draw(st.sampled_from([1e-6, 0.02, 30.0]))
    module = fake(gaussian(draw(st.integers(1, 9)), columns) * size, scheme)
    seed = draw(st.integers(1, 99))
    with torch.no_grad():
        module.latent.add_(gaussian(*module.shape, seed=seed) * size * draw(st.sampled_from([0.0, 0.01, 1.0])))
        module.scale.mul_(1 + draw(st.sampled_from([0.0, 0.01, 1.0])) * gaussian(*module.scale.shape, seed=seed))
    return module


@given(trained())
def test_what_is_packed_is_what_was_trained_bit_for_bit(module):
    tensor = module.pack()
    assert torch.equal(tensor.dequantize(), module.weight)
    outliers = 0 if module.outliers is None else module.outliers.numel()
    tensors = tensor.to_tensors()
    specs = tensor_specs(module.scheme, module.shape, outliers)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()} == specs
    assert (tensor.scale > 0).all()
    again = QuantizedTensor.from_tensors(tensors, module.scheme, module.shape)
    assert torch.equal(again.dequantize(), module.weight)


@given(trained())
def test_the_gradients_are_those_of_the_published_pseudocode(module):
    """Appendix A of LSQ, with autograd in the place of formulas of our own."""
    with torch.no_grad():
        module.scale.abs_().clamp_(min=1e-3)
    target = gaussian(*module.shape, seed=3)
    (module.weight * target).sum().backward()

    scale, latent = module.scale.detach().clone().requires_grad_(), module.latent.detach().clone().requires_grad_()
    negative, positive = limits(module.scheme)
    count = latent.numel() // scale.numel()
    factor = 1 / (count * positive) ** 0.5
    stored = scale.half().float() if module.scheme.granularity == "group" else scale
    scaled = stored.detach() + (scale * factor - (scale * factor).detach())  # exactly what is stored
    rows = latent.view(scale.numel(), -1)
    steps = (rows / scaled.view(-1, 1)).clamp(-negative, positive)
    rounded = (steps + module.scheme.offset).round() - module.scheme.offset
    weight = ((steps + (rounded - steps).detach()) * scaled.view(-1, 1)).view(module.shape)
    if module.outliers is not None:
        keep = torch.ones(latent.numel(), dtype=torch.bool).index_fill_(0, module.outliers, False).view(module.shape)
        weight = torch.where(keep, weight, latent)
    (weight * target).sum().backward()
    torch.testing.assert_close(module.latent.grad, latent.grad)
    torch.testing.assert_close(module.scale.grad, scale.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("levels", "weight", "by_step"),
    [
        ("full", [-1.0, -0.5, 0.0, 0.5], (-2 - 2 * 0.2 - 3 * 0.2 + 4) / 2),
        ("midrise", [-0.75, -0.25, 0.25, 0.75], (-1.5 + 2 * 0.3 + 3 * 0.3 + 4 * 1.5) / 6**0.5),
    ],
)
def test_gradients_by_hand(levels, weight, by_step):
    """Weights of -2.6, -0.8, 0.2 and 1.8 steps: the first and the last lie outside the grid of 2 bits."""
    module = fake(gaussian(1, 4), Scheme(bits=2, levels=levels, outliers=None))
    with torch.no_grad():
        module.scale.fill_(0.5)
        module.latent.copy_(torch.tensor([[-1.3, -0.4, 0.1, 0.9]]))
    assert module.weight.tolist() == [weight]
    (module.weight * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert module.latent.grad.tolist() == [[0, 2, 3, 0]]
    assert module.scale.grad.item() == pytest.approx(by_step, rel=1e-5)


def test_a_weight_at_the_end_of_the_grid_still_trains():
    module = fake(torch.tensor([[-1.5, -0.5, 0.5, 1.5]]), Scheme(bits=2, strategy="minmax", outliers=None))
    module.weight.sum().backward()
    assert module.latent.grad.tolist() == [[1, 1, 1, 1]]


def test_outliers_are_latent_values_in_16_bits():
    weight = gaussian(6, 50)
    module = fake(weight, Scheme(bits=2, outliers=OutlierRule("magnitude", 0.02)))
    with torch.no_grad():
        module.latent.mul_(1.1)
    places = weight.abs().view(-1).topk(6).indices
    assert set(module.outliers.tolist()) == set(places.tolist())
    assert torch.equal(module.weight.view(-1)[places], module.latent.view(-1)[places].half().float())
    assert module.weight.abs().view(-1)[places].min() > 1.2 * module.weight.abs().view(-1).sort().values[:-6].max()
    module.weight.backward(torch.full((6, 50), 3.0))
    assert (module.latent.grad.view(-1)[places] == 3).all()
    target, others = gaussian(6, 50, seed=1), gaussian(6, 50, seed=1)
    others.view(-1)[places] = 9
    gradients = [torch.autograd.grad((module.weight * c).sum(), module.scale)[0] for c in (target, others)]
    assert torch.equal(*gradients)  # a step size has no part in them


def test_the_start_is_what_the_strategy_chose():
    """GPTQ takes codes other than the nearest ones, and moves its outliers."""
    weight, inputs = gaussian(6, 32), gaussian(200, 32, seed=1) @ gaussian(32, 32, seed=2)
    tensor = quantize_tensor(
        weight, Scheme(bits=3, strategy="gptq", outliers=OutlierRule(share=0.02)), hessian=inputs.t() @ inputs
    )
    module = FakeQuantLinear(weight, tensor)
    assert torch.equal(module.weight, tensor.dequantize())
    kept = module.latent == weight
    assert 0.2 < kept.float().mean() < 0.9  # the others start in the middle of their cell
    nearest = fake(weight, Scheme(bits=3))
    assert torch.equal(nearest.latent, weight)


@pytest.mark.parametrize("granularity", [{}, {"granularity": "group", "group_size": 4}], ids=["channel", "group"])
def test_a_step_size_below_zero_is_harmless_and_can_come_back(granularity):
    module = fake(gaussian(2, 8), Scheme(bits=4, outliers=None, **granularity))
    with torch.no_grad():
        module.scale.fill_(-0.1)
    (module.weight - module.latent.detach()).square().sum().backward()
    assert module.weight.isfinite().all()
    assert module.latent.grad.isfinite().all()
    assert (module.scale.grad < 0).all()  # descent makes it larger
    assert torch.equal(module.pack().dequantize(), module.weight)


def test_the_layer_is_the_product_with_its_quantized_weight():
    bias, x = nn.Parameter(torch.arange(5.0)), gaussian(2, 3, 8, seed=1)
    module = fake(gaussian(5, 8), Scheme(bits=3), bias)
    assert torch.equal(module(x), F.linear(x, module.pack().dequantize(), bias))
    assert {name for name, _ in module.named_parameters()} == {"latent", "scale", "bias"}
    assert module.bias is bias
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16


def test_inputs_are_rounded_where_the_scheme_asks_for_it():
    tensor, x = quantize_tensor(gaussian(5, 8), Scheme.parse("w3a8")), gaussian(4, 8, seed=1)
    module = FakeQuantLinear(gaussian(5, 8), tensor)
    torch.testing.assert_close(module(x), QuantLinear(tensor)(x))
    assert not torch.allclose(module(x), x @ module.weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [0.011, -0.5])
def test_a_learned_step_of_the_inputs_is_packed_and_computes_the_same(step):
    bias, x = nn.Parameter(torch.arange(5.0)), gaussian(2, 3, 8, seed=1)
    module = fake(gaussian(5, 8), Scheme.parse("w2a8so0"), bias, torch.tensor([0.02]))
    with torch.no_grad():
        module.input_scale.fill_(step)
    tensor = module.pack()
    assert tensor.input_scale.item() == pytest.approx(max(step, 0))
    assert torch.equal(module(x), QuantLinear(tensor, bias)(x))
    assert not torch.allclose(module(x), F.linear(x, module.weight, bias), rtol=1e-4, atol=1e-4)


def test_a_learned_step_of_the_inputs_has_a_gradient_and_a_rate_by_its_size():
    module = fake(gaussian(5, 8), Scheme.parse("w4a8s"), step=torch.tensor([0.02]))
    module(gaussian(4, 8, seed=1)).square().sum().backward()
    assert module.input_scale.grad.abs().item() > 0
    of_weight, of_inputs = module.step_groups(1e-3)
    assert of_weight["params"] == [module.scale]
    assert of_inputs["params"] == [module.input_scale]
    assert of_inputs["lr"] == pytest.approx(1e-3 * 0.02 / module.latent.abs().mean().item())
    (only,) = fake(gaussian(5, 8), Scheme.parse("w4a8")).step_groups(1e-3)
    assert only["lr"] == pytest.approx(of_weight["lr"])


def test_an_offset_is_added_behind_the_rounding():
    module, x = fake(gaussian(5, 8), Scheme(bits=2)), gaussian(4, 8, seed=1)
    module.offset = gaussian(5, 8, seed=2) * 1e-3
    torch.testing.assert_close(module(x), x @ (module.pack().dequantize() + module.offset).t())
    before = module.weight.clone()
    with torch.no_grad():
        module.latent.add_(1e-6 * module.offset)  # rounding swallows that
    assert torch.equal(module.weight, before)


def test_the_gradient_of_the_offset_is_that_of_the_quantized_weight():
    module, x = fake(gaussian(5, 8), Scheme(bits=2, outliers=None)), gaussian(4, 8, seed=1)
    module.offset = torch.zeros(5, 8, requires_grad=True)
    assert {name for name, _ in module.named_parameters()} == {"latent", "scale"}
    dense = torch.ones(5, 4) @ x
    (module(x).sum() + module(2 * x).sum()).backward()
    torch.testing.assert_close(module.offset.grad, 3 * dense)
    assert not torch.equal(module.offset.grad, module.latent.grad)  # clipped weights have one, too
    checkpoint(module, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(module.offset.grad, 4 * dense)


@pytest.mark.parametrize("levels", [{"strategy": "kmeans"}, {"symmetric": False}], ids=["codebook", "asymmetric"])
def test_grids_that_cannot_be_trained(levels):
    with pytest.raises(SchemeError, match="only symmetric grids with levels `full` or `midrise` are trained"):
        fake(gaussian(2, 8), Scheme(bits=3, outliers=None, **levels))


@pytest.mark.parametrize(
    ("name", "value"), [("latent", torch.nan), ("scale", torch.inf), ("input_scale", torch.nan), ("latent", 1e6)]
)
def test_what_cannot_be_stored_is_refused(name, value):
    scheme = Scheme(bits=3, outliers=OutlierRule("magnitude", 0.1), activations="static")
    module = fake(gaussian(2, 8), scheme, step=torch.ones(1))
    with torch.no_grad():
        getattr(module, name).fill_(value)
    with pytest.raises(WeightError, match="float16 range" if value == 1e6 else "NaN or infinite"):
        module.pack()


@settings(max_examples=10)
@given(st.integers(2, 8), st.sampled_from(["full", "midrise"]))
def test_training_lowers_the_error_of_the_grid(bits, levels):
    """Step sizes learn: from four times too large they come back."""
    module = fake(gaussian(4, 200), Scheme(bits=bits, levels=levels, outliers=None))
    target = module.latent.detach().clone()
    with torch.no_grad():
        module.scale.mul_(4)
    optimizer = torch.optim.Adam([module.scale], lr=module.scale.mean().item() / 50)
    errors = []
    for _ in range(60):
        loss = (module.weight - target).square().sum()
        errors.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.6 * errors[0]
