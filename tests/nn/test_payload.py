from copy import deepcopy

import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.nn import CODES, QuantEmbedding, QuantLinear, QuantModule, empty_tensor
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

SCHEMES = {
    "w4": Scheme(outliers=OutlierRule(share=0.05)),
    "w3 asymmetric group": Scheme(
        bits=3, symmetric=False, granularity="group", group_size=8, outliers=OutlierRule(share=0.05)
    ),
    "w3 codebook": Scheme(bits=3, strategy="kmeans", outliers=OutlierRule(share=0.05)),
    "w4 shared codebook group": Scheme(
        strategy="kmeans", levels="shared-codebook", granularity="group", group_size=8, outliers=None
    ),
    "w8 tensor": Scheme(bits=8, granularity="tensor", outliers=None),
}
CASTS = {
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.float64),
    "there and back": lambda m: m.half().float(),
}


@pytest.fixture(params=SCHEMES)
def tensor(request):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    return quantize_tensor(weight, SCHEMES[request.param])


@pytest.fixture
def linear(tensor):
    return QuantLinear(tensor, torch.arange(6.0))


def snapshot(module):
    return {name: value.clone() for name, value in module.tensor.to_tensors().items()}


def same(one, two):
    return list(one) == list(two) and all(one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("cast", CASTS)
def test_casts_keep_the_payload_and_move_the_bias(linear, cast):
    before = snapshot(linear)
    probe = CASTS[cast](torch.nn.Linear(1, 1))
    module = CASTS[cast](torch.nn.Sequential(linear))[0]
    assert same(snapshot(module), before)
    assert module.bias.dtype == probe.bias.dtype
    assert module(torch.ones(2, 16, dtype=probe.bias.dtype)).dtype == probe.bias.dtype


def test_moving_to_another_device_keeps_names_and_dtypes(linear):
    before = snapshot(linear)
    moved = deepcopy(linear).to("meta", torch.float16)
    assert all(t.device.type == "meta" for t in (*moved.buffers(), moved.bias))
    assert {n: t.dtype for n, t in moved.tensor.to_tensors().items()} == {n: t.dtype for n, t in before.items()}
    assert moved.weight.device.type == "meta"
    empty = moved.to_empty(device="cpu")
    assert {n: t.shape for n, t in empty.tensor.to_tensors().items()} == {n: t.shape for n, t in before.items()}


def test_state_dict_has_codes_parameters_and_bias(linear, tensor):
    names = set(tensor.to_tensors()) - {"weight"} | {CODES, "bias"}
    assert set(linear.state_dict()) == names
    assert [name for name, _ in linear.named_parameters()] == ["bias"]
    other = QuantLinear(empty_tensor(tensor.scheme, tensor.shape), torch.zeros(6))
    other.load_state_dict(linear.state_dict(), assign=True)
    assert same(snapshot(other), snapshot(linear))


def test_deepcopy_is_equal_and_independent(linear):
    copy, before = deepcopy(linear), snapshot(linear)
    assert same(snapshot(copy), before)
    for value in (*copy.tensor.to_tensors().values(), copy.bias.data):
        value.zero_()
    assert same(snapshot(linear), before)
    assert linear.bias.tolist() == [0, 1, 2, 3, 4, 5]


def test_weight_is_a_float32_copy_that_initialisers_leave_alone(linear, tensor):
    assert torch.equal(linear.weight, tensor.dequantize())
    assert linear.weight.dtype == torch.float32
    assert not linear.weight.requires_grad
    assert linear.weight._is_hf_initialized
    linear.weight.zero_()
    assert torch.equal(linear.weight, tensor.dequantize())


def test_payload_shares_memory_with_the_module_and_has_the_names_on_disk(linear, tensor):
    assert linear.tensor.weight.data_ptr() == linear.codes.data_ptr()
    assert same(linear.payload(), tensor.to_tensors())


def test_an_empty_tensor_has_the_specs_of_a_full_one(tensor):
    empty = empty_tensor(tensor.scheme, tensor.shape).to_tensors()
    full = tensor.to_tensors()
    assert {n: (t.dtype, t.shape) for n, t in empty.items()} == {n: (t.dtype, t.shape) for n, t in full.items()}
    assert all(t.is_meta for t in empty.values())
    assert QuantModule(empty_tensor(tensor.scheme, tensor.shape)).weight.shape == tensor.shape


def test_printing_shows_shape_scheme_and_outliers():
    tensor = quantize_tensor(torch.ones(4, 50), Scheme())
    assert repr(QuantLinear(tensor)) == "QuantLinear(out=4, in=50, scheme=w4, outliers=1)"


@pytest.mark.parametrize("name", ["outlier_value", "scale"])
@pytest.mark.parametrize("kind", [QuantLinear, QuantEmbedding])
def test_a_trained_part_is_a_float32_parameter_and_stored_as_before(kind, name):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    module = kind(quantize_tensor(weight, SCHEMES["w3 asymmetric group"]))
    before = snapshot(module)
    parameter = module.train_payload(name)
    assert dict(module.named_parameters()) == {name: parameter}
    assert parameter.dtype == torch.float32
    assert same(module.payload(), before)
    x = torch.ones(2, 16) if kind is QuantLinear else torch.arange(6)
    module(x).sum().backward()
    assert parameter.grad.abs().sum() > 0
    (read,) = torch.autograd.grad(module.weight.sum(), parameter)  # code that reads the weight trains it, too
    assert read.abs().sum() > 0
    with torch.no_grad():
        parameter += 2.0**-6
    assert not same(module.payload(), before)
    trained = module.payload()
    module.freeze_payload(name)
    assert not list(module.parameters())
    assert same(snapshot(module), trained)


def test_a_parameter_in_training_keeps_dtype_and_gradient_through_a_cast(linear):
    parameter = linear.train_payload("scale")
    linear(torch.ones(2, 16)).sum().backward()
    gradient = parameter.grad.clone()
    linear.bfloat16()
    assert linear.bias.dtype == torch.bfloat16
    assert linear.scale.dtype == linear.scale.grad.dtype == torch.float32
    assert torch.equal(linear.scale.grad, gradient)


def by_step(module, steps=3):
    """Outputs and weights over some steps of training everything that can be trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    found = []
    for _ in range(steps):
        output = module(torch.ones(2, 16))
        gradients = torch.autograd.grad(output.square().sum(), trained)
        found += [output.detach(), module.weight.detach(), *gradients]
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter -= 1e-3 * gradient
    return found


@pytest.mark.parametrize("names", [(), ("outlier_value",), ("scale",), ("outlier_value", "scale")], ids=str)
def test_training_is_the_same_with_and_without_a_cache(linear, names):
    for name in names:
        if getattr(linear, name) is not None:
            linear.train_payload(name)
    cached = deepcopy(linear)
    cached.cache(torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(by_step(cached), by_step(linear), strict=True))
    assert same(cached.payload(), linear.payload())


def test_a_cache_is_neither_saved_nor_copied_nor_registered(linear):
    before = set(linear.state_dict())
    linear.cache(torch.float32)
    linear(torch.ones(2, 16))
    assert linear._cache is not None
    assert set(linear.state_dict()) == before
    copy = deepcopy(linear)
    assert copy._cache is None
    assert copy.cached() is not None
    linear.cache(None)
    assert linear._cache is linear.cached() is None


@pytest.mark.parametrize("change", ["load", "assign", "scale", "train", "freeze", "cast"])
def test_a_cache_follows_what_is_done_to_the_module(linear, tensor, change):
    linear.cache(torch.float32)
    x = torch.ones(2, 16)
    linear(x)
    other = QuantLinear(
        quantize_tensor(torch.randn(6, 16, generator=torch.Generator().manual_seed(1)), tensor.scheme), torch.zeros(6)
    )
    if change == "load":
        linear.load_state_dict(other.state_dict())
    elif change == "assign":
        linear.load_state_dict(other.state_dict(), assign=True)
    elif change == "scale":
        linear.scale.mul_(2)
    elif change == "train":
        with torch.no_grad():
            linear.train_payload("scale").mul_(2)
    elif change == "freeze":
        parameter = linear.train_payload("scale")
        linear(x)
        with torch.no_grad():
            parameter.mul_(2)
        linear.freeze_payload("scale")
    else:
        linear.double().float()
    found = linear(x)
    linear.cache(None)
    assert torch.equal(found, linear(x))


def test_a_cache_goes_with_the_move_to_another_device(linear):
    linear.cache(torch.float32)
    linear(torch.ones(2, 16))
    linear.to("meta")
    assert linear._cache is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_cache_in_another_dtype_is_refused(linear, dtype):
    with pytest.raises(SchemeError, match=r"torch\.bfloat16 or torch\.float32"):
        linear.cache(dtype)
