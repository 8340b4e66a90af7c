from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lowbit.kernels import dense_scale_gradient, note_origin, outlier_gradient, quant_linear, scale_gradient
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

OUT, IN = 10, 24
STEPS = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 8}]
RULES = [None, OutlierRule(share=0.1), OutlierRule(share=0.001)]  # the last gives empty rows


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trainable(tensor):
    """The same tensor with float32 step sizes and values that require gradients, as in training."""
    value = None if tensor.outlier_value is None else tensor.outlier_value.float().requires_grad_()
    return replace(tensor, scale=tensor.scale.float().requires_grad_(), outlier_value=value)


def dense_reference(x, tensor, bias):
    """The same product through a dense weight that autograd builds step by step."""
    groups = tensor.scale.shape[1]
    zero = tensor.scheme.offset if tensor.zero_point is None else tensor.zero_point.float()[:, :, None]
    steps = tensor.codes().float().view(OUT, groups, -1) - zero
    weight = (steps * tensor.scale[:, :, None]).reshape(-1)
    if tensor.outlier_value is not None:
        weight = weight.scatter(0, tensor.outlier_positions(), tensor.outlier_value)
    return F.linear(x, weight.view(OUT, IN), bias)


def gradients(function, x, tensor, bias):
    leaves = [x, bias, tensor.scale] + ([] if tensor.outlier_value is None else [tensor.outlier_value])
    output = function(x, tensor, bias)
    return output, torch.autograd.grad(output, leaves, gaussian(*output.shape, seed=5))


@pytest.fixture(params=[(5,), (2, 3)], ids=["2d", "3d"])
def x(request):
    return gaussian(*request.param, IN, seed=1).requires_grad_()


@pytest.fixture
def bias():
    return gaussian(OUT, seed=2).requires_grad_()


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
@pytest.mark.parametrize("rule", RULES, ids=["none", "outliers", "empty"])
@pytest.mark.parametrize(
    "grid", [{"bits": 4}, {"bits": 2}, {"bits": 3, "symmetric": False}], ids=["w4", "w2", "w3 asymmetric"]
)
def test_output_and_gradients_are_those_of_the_dense_weight(grid, rule, step, x, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=rule, **grid, **step)))
    output, found = gradients(quant_linear, x, tensor, bias)
    expected_output, expected = gradients(dense_reference, x, tensor, bias)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(output, F.linear(x, tensor.dequantize(), bias))
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
def test_gradients_agree_with_finite_differences(step, bias):
    """The output is linear in each argument by itself, so that large differences are exact."""
    x = gaussian(4, IN, seed=1).requires_grad_()
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1], **step)))
    weights = gaussian(4, OUT, seed=5)
    _, found = gradients(quant_linear, x, tensor, bias)
    for leaf, gradient in zip([x, bias, tensor.scale, tensor.outlier_value], found, strict=True):
        for index in range(0, leaf.numel(), 5):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[index] += sign
                    ends.append(float((quant_linear(x, tensor, bias) * weights).sum()))
                    leaf.view(-1)[index] -= sign
            difference = (ends[0] - ends[1]) / 2
            assert float(gradient.view(-1)[index]) == pytest.approx(difference, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_has_the_dtype_of_the_input(dtype, bias):
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1]))
    x = gaussian(3, IN, seed=1).to(dtype)
    found = quant_linear(x, tensor, bias)  # the bias is float32
    assert found.dtype == dtype
    torch.testing.assert_close(found, F.linear(x, tensor.dequantize(dtype), bias.to(dtype)), rtol=1e-2, atol=2e-2)


def test_autocast_computes_in_its_dtype_and_returns_float32_gradients(x, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, found = gradients(quant_linear, x, tensor, bias)
        reference = F.linear(x, tensor.dequantize(), bias)
    assert output.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(output, reference, rtol=0.02, atol=0.02)
    _, expected = gradients(dense_reference, x, tensor, bias)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.02 * two.norm()


def test_backward_works_outside_autocast_after_a_forward_inside(x, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = quant_linear(x, tensor, bias).sum()
    loss.backward()
    assert x.grad.dtype == tensor.scale.grad.dtype == tensor.outlier_value.grad.dtype == torch.float32


@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
def test_nothing_of_the_size_of_the_weight_is_kept_for_backward(step, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1], **step)))
    x = gaussian(3, IN, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = quant_linear(x, tensor, bias)
    assert any(t.data_ptr() == x.data_ptr() for t in kept)
    assert max(t.numel() for t in kept if t.is_floating_point()) < OUT * IN
    context = output.grad_fn.next_functions[0][0].tensor  # what is held without being a saved tensor
    assert not any(t.is_floating_point() and t.numel() for t in context.to_tensors().values())


def test_an_input_that_no_gradient_needs_is_not_kept(bias):
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1]))
    x, kept = gaussian(3, IN).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quant_linear(x, tensor, bias)
    assert x.data_ptr() not in [t.data_ptr() for t in kept]


GRIDS = [
    {},
    {"symmetric": False, "bits": 3},
    {"bits": 2},
    {"bits": 3, "strategy": "kmeans"},
    {"strategy": "kmeans", "levels": "shared-codebook"},
    {"bits": 8, "granularity": "tensor"},
    {"bits": 3, "symmetric": False, "granularity": "tensor"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=["none", "outliers", "empty"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_of_step_sizes_by_the_output_is_the_dense_one(grid, rule, dtype):
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=rule, **grid))
    grad, x = gaussian(7, OUT, seed=1).to(dtype), gaussian(7, IN, seed=2).to(dtype)
    outlier_grad = None
    if tensor.outlier_value is not None:
        outlier_grad = outlier_gradient(grad, x, tensor.outlier_ptr, tensor.outlier_col, IN)
    found = scale_gradient(grad, F.linear(x, tensor.dequantize(dtype)), tensor, outlier_grad)
    expected = dense_scale_gradient(grad, x, tensor)
    assert found.shape == expected.shape == tensor.scale.shape
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("step", STEPS[:2], ids=lambda s: s["granularity"])
def test_step_sizes_of_zero_have_their_gradient(step, x, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1], **step)))
    with torch.no_grad():
        tensor.scale[0] = 0
    _, found = gradients(quant_linear, x, tensor, bias)
    _, expected = gradients(dense_reference, x, tensor, bias)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=1e-5)
    assert found[2][0] != 0


def test_step_sizes_train_while_outliers_do_not(x, bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    tensor = replace(tensor, outlier_value=tensor.outlier_value.detach())
    (found,) = torch.autograd.grad(quant_linear(x, tensor, bias).sum(), tensor.scale)
    (expected,) = torch.autograd.grad(dense_reference(x, tensor, bias).sum(), tensor.scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [1, 3 * OUT])
def test_gradients_are_the_same_however_many_tokens_are_summed_at_once(values, bias, monkeypatch):
    monkeypatch.setattr("lowbit.kernels.linear._VALUES", values)
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    x = gaussian(7 * torch.get_num_threads(), IN, seed=1).requires_grad_()
    _, found = gradients(quant_linear, x, tensor, bias)
    _, expected = gradients(dense_reference, x, tensor, bias)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_an_output_may_be_changed_in_place(x, bias):
    """As DeBERTa does; the gradient of the step sizes goes by the output."""
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme()))
    quant_linear(x, tensor, bias).div_(3).square().sum().backward()
    (expected,) = torch.autograd.grad((dense_reference(x, tensor, bias) / 3).square().sum(), tensor.scale)
    torch.testing.assert_close(tensor.scale.grad, expected, rtol=1e-4, atol=1e-5)


def test_only_the_gradients_asked_for_are_computed(bias):
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1]))
    assert not quant_linear(gaussian(3, IN), tensor, None).requires_grad
    values = tensor.outlier_value.float().requires_grad_()
    quant_linear(gaussian(3, IN), replace(tensor, outlier_value=values), bias).sum().backward()
    assert values.grad.shape == values.shape
    assert tensor.scale.grad is None


def kept_storages(function):
    """What a function gives, and the storages that autograd keeps for its backward."""
    found = []

    def note(tensor):
        found.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        return function(), found


@pytest.mark.parametrize("autocast", [False, True])
def test_an_input_that_remembers_its_origin_is_made_again_and_not_kept(bias, autocast):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1], granularity="group", group_size=8)))
    source = gaussian(2, 3, IN, seed=1).requires_grad_()
    leaves, results = (source, tensor.outlier_value, tensor.scale, bias), []
    for hooked in (False, True):
        gelu = torch.nn.GELU()
        if hooked:
            gelu.register_forward_hook(note_origin)
        x = gelu(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, kept = kept_storages(lambda: quant_linear(x, tensor, bias))  # noqa: B023
        assert (source.untyped_storage().data_ptr() in kept) == hooked
        assert (x.untyped_storage().data_ptr() in kept) == (not hooked and not autocast)
        results.append(torch.autograd.grad(output.float().square().sum(), leaves))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_an_input_that_was_changed_since_is_kept(bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    gelu, source, results = torch.nn.GELU(), gaussian(5, IN, seed=1).requires_grad_(), []
    for hooked in (False, True):
        if hooked:
            gelu.register_forward_hook(note_origin)
        output = quant_linear(gelu(source).mul_(3), tensor, bias)
        results.append(torch.autograd.grad(output.square().sum(), (source, tensor.outlier_value)))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("tokens", [1, 7, 256, 600])  # tiles, a part of one, and both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outlier_gradient_is_the_dense_product_at_the_positions(dtype, tokens):
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1]))
    grad, x = gaussian(tokens, OUT, seed=1).to(dtype), gaussian(tokens, IN, seed=2).to(dtype)
    found = outlier_gradient(grad, x, tensor.outlier_ptr, tensor.outlier_col, IN)
    expected = (grad.float().t() @ x.float()).flatten()[tensor.outlier_positions()]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_outlier_gradient_takes_any_layout_and_gives_the_same_bytes_on_any_number_of_threads():
    tensor = quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1]))
    grad, x = gaussian(OUT, 600, seed=1).t(), gaussian(2 * IN, 600, seed=2).t()[:, ::2]
    sparse = (tensor.outlier_ptr, tensor.outlier_col, IN)
    expected = outlier_gradient(grad.contiguous(), x.contiguous(), *sparse)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(outlier_gradient(grad, x, *sparse), expected)
    finally:
        torch.set_num_threads(threads)


def test_no_tokens_give_no_output_and_zero_gradients(bias):
    tensor = trainable(quantize_tensor(gaussian(OUT, IN), Scheme(outliers=RULES[1])))
    x = torch.empty(0, IN, requires_grad=True)
    output, found = gradients(quant_linear, x, tensor, bias)
    assert output.shape == (0, OUT)
    assert not any(gradient.any() for gradient in found)
