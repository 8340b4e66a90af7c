from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lowbit.kernels import WeightCache, quant_linear
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

OUT, IN = 10, 24
OUTLIERS = OutlierRule(share=0.1)
GRIDS = {
    "w2": Scheme(bits=2, outliers=OUTLIERS),
    "w3": Scheme(bits=3, outliers=OUTLIERS),
    "w4": Scheme(outliers=OUTLIERS),
    "w8": Scheme(bits=8, outliers=OUTLIERS),
    "no outliers": Scheme(outliers=None),
    "tensor": Scheme(granularity="tensor", outliers=OUTLIERS),
    "group": Scheme(granularity="group", group_size=8, outliers=OUTLIERS),
    "asymmetric": Scheme(bits=8, symmetric=False, outliers=OUTLIERS),
    "asymmetric group": Scheme(bits=3, symmetric=False, granularity="group", group_size=3, outliers=OUTLIERS),
    "codebook": Scheme(bits=3, strategy="kmeans", outliers=OUTLIERS),
    "shared codebook": Scheme(strategy="kmeans", levels="shared-codebook", outliers=OUTLIERS),
}
DTYPES = [torch.float32, torch.bfloat16]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(scheme, out=OUT, width=IN, scale=False):
    """A tensor in training: float32 values, and step sizes where asked for, that require gradients."""
    tensor = quantize_tensor(gaussian(out, width), scheme)
    value = None if tensor.outlier_value is None else tensor.outlier_value.float().requires_grad_()
    return replace(tensor, outlier_value=value, scale=tensor.scale.float().requires_grad_() if scale else tensor.scale)


def run(tensor, cache, dtype):
    """Output and gradients of the input, the bias and whatever else is trained."""
    x = gaussian(2, 3, tensor.shape[1], seed=1).to(dtype).requires_grad_()
    bias = gaussian(tensor.shape[0], seed=2).requires_grad_()
    leaves = [x, bias, *(t for t in (tensor.outlier_value, tensor.scale) if t is not None and t.requires_grad)]
    output = quant_linear(x, tensor, bias, cache)
    return [output, *torch.autograd.grad(output, leaves, gaussian(*output.shape, seed=3).to(dtype))]


def equal(one, two):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("scale", [False, True], ids=["frozen scale", "trained scale"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_everything_is_the_same_bit_for_bit_at_every_step(grid, dtype, scale):
    tensor = trained(GRIDS[grid], scale=scale)
    cache = WeightCache(tensor, dtype, trained_scale=scale)
    for _ in range(3):
        found, expected = run(tensor, cache, dtype), run(tensor, None, dtype)
        assert found[0].dtype == dtype
        assert equal(found, expected)
        with torch.no_grad():  # as an optimizer does
            for leaf in (tensor.outlier_value, tensor.scale):
                if leaf is not None and leaf.requires_grad:
                    leaf.mul_(1.25).add_(0.01)
        assert cache.fits(tensor)
        if scale or tensor.outlier_value is not None:
            assert not torch.equal(run(tensor, cache, dtype)[0], expected[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 13)], ids=str)
def test_odd_shapes(shape):
    tensor = trained(Scheme(bits=3, outliers=OutlierRule(share=0.2)), *shape)
    for dtype in DTYPES:
        cache = WeightCache(tensor, dtype, trained_scale=False)
        assert equal(run(tensor, cache, dtype), run(tensor, None, dtype))


def test_under_autocast_it_serves_the_dtype_of_autocast():
    tensor = trained(GRIDS["w4"])
    cache = WeightCache(tensor, torch.bfloat16, trained_scale=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(run(tensor, cache, torch.float32), run(tensor, None, torch.float32))


def test_a_product_in_another_dtype_does_not_use_it():
    tensor = trained(GRIDS["w4"])
    cache = WeightCache(tensor, torch.bfloat16, trained_scale=False)
    assert equal(run(tensor, cache, torch.float32), run(tensor, None, torch.float32))


def test_backward_uses_the_values_of_its_forward():
    """Another forward with other values stands between a forward and its backward."""
    one, two = trained(GRIDS["w4"]), trained(GRIDS["w4"])
    two = replace(two, weight=one.weight, outlier_value=(one.outlier_value.detach() + 1).requires_grad_())
    cache = WeightCache(one, torch.float32, trained_scale=False)
    x = gaussian(3, IN).requires_grad_()
    first, second = quant_linear(x, one, None, cache), quant_linear(x, two, None, cache)
    (found,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(found, torch.ones(3, OUT) @ one.dequantize())
    assert not torch.equal(found, torch.autograd.grad(second.sum(), x)[0])


@pytest.mark.parametrize("part", ["weight", "zero_point", "scale"])
def test_it_no_longer_fits_after_a_change_of_what_it_was_made_of(part):
    tensor = trained(GRIDS["asymmetric"])
    cache = WeightCache(tensor, torch.float32, trained_scale=False)
    assert cache.fits(replace(tensor))
    assert not cache.fits(replace(tensor, **{part: getattr(tensor, part).clone()}))
    getattr(tensor, part).add_(1)
    assert not cache.fits(tensor)


def test_it_can_be_made_and_used_in_inference_mode_and_trained_with_afterwards():
    tensor = trained(GRIDS["w4"])
    with torch.inference_mode():
        cache = WeightCache(tensor, torch.float32, trained_scale=False)
        x = gaussian(3, IN)
        torch.testing.assert_close(quant_linear(x, tensor, None, cache), F.linear(x, tensor.dequantize()))
    assert equal(run(tensor, cache, torch.float32), run(tensor, None, torch.float32))
    with torch.inference_mode():
        loaded = quantize_tensor(gaussian(OUT, IN), GRIDS["w4"])
    cache = WeightCache(loaded, torch.float32, trained_scale=False)
    assert cache.fits(loaded)
    assert torch.equal(cache.weight(loaded), loaded.dequantize())
