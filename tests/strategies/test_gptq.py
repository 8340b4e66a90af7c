import pytest
import torch

from lowbit.errors import SchemeError, WeightError
from lowbit.qtensor import find_outliers, quantize_tensor
from lowbit.scheme import OutlierRule, Scheme
from lowbit.strategies.gptq import error_weights

GRANULARITIES = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 20}]
GRIDS = [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}]


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def weight():
    return gaussian(24, 160)


@pytest.fixture
def inputs():
    """Correlated inputs of which some columns are far larger than others."""
    return gaussian(600, 160, seed=1) @ gaussian(160, 160, seed=2) * torch.linspace(0.1, 3, 160)


def gptq(**fields):
    return Scheme(strategy="gptq", **{"outliers": None, **fields})


def output_error(found, weight, inputs):
    return float(((found.dequantize() - weight) @ inputs.t()).square().sum() / (weight @ inputs.t()).square().sum())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g["granularity"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("outliers", [None, OutlierRule(share=0.02)], ids=["none", "outliers"])
def test_the_output_changes_less_than_with_the_nearest_codes(weight, inputs, outliers, grid, granularity):
    hessian = inputs.t() @ inputs
    fields = {"bits": 3, "outliers": outliers, **grid, **granularity}
    found = quantize_tensor(weight, gptq(**fields), hessian=hessian)
    nearest = quantize_tensor(weight, Scheme(strategy="mse", **fields))
    assert output_error(found, weight, inputs) < 0.6 * output_error(nearest, weight, inputs)
    again = quantize_tensor(weight, gptq(**fields), hessian=hessian)
    assert all(torch.equal(value, again.to_tensors()[name]) for name, value in found.to_tensors().items())


def test_codes_are_those_of_the_textbook_loop(weight, inputs):
    """Column by column with the inverse of what is left of the Hessian, as optimal brain quantization does it."""
    hessian = inputs.t() @ inputs
    found = quantize_tensor(weight, gptq(bits=3, options={"damping": 0.2}), hessian=hessian)
    damped = hessian.double() + 0.2 * hessian.diagonal().double().mean() * torch.eye(160, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse, work = torch.linalg.inv(damped[order][:, order]), weight.double()[:, order]
    codes = torch.zeros(24, 160)
    for column in range(160):
        steps = work[:, column] / found.scale[:, 0]
        codes[:, order[column]] = (steps + 4).round().clamp(0, 7).float()
        error = work[:, column] - (codes[:, order[column]] - 4) * found.scale[:, 0]
        work -= error[:, None] * inverse[column] / inverse[column, column]
        inverse -= inverse[:, column, None] * inverse[column] / inverse[column, column]
    assert (found.codes().float() != codes).float().mean() < 0.002  # float32 against float64 at the borders
    plain = quantize_tensor(weight, Scheme(bits=3, outliers=None))
    assert (found.codes() != plain.codes()).float().mean() > 0.1


def test_columns_that_do_not_interact_get_the_nearest_codes(weight):
    found = quantize_tensor(weight, gptq(), hessian=torch.diag(torch.rand(160)))
    nearest = quantize_tensor(weight, Scheme(outliers=None))
    assert torch.equal(found.codes(), nearest.codes())
    assert torch.equal(found.scale, nearest.scale)


def test_outliers_take_up_errors_of_other_columns(weight, inputs):
    scheme, hessian = gptq(bits=2, outliers=OutlierRule(share=0.05)), inputs.t() @ inputs
    found = quantize_tensor(weight, scheme, hessian=hessian)
    positions = found.outlier_positions()
    assert positions.tolist() == find_outliers(weight, scheme, hessian=hessian).tolist()
    moved = (found.outlier_value.float() - weight.view(-1)[positions]).abs()
    assert moved.max() > 0.1
    back = weight.clone()
    kept = found.dequantize().view(-1)
    kept[positions] = back.view(-1)[positions]
    fixed = float(((kept.view_as(weight) - weight) @ inputs.t()).square().sum() / (weight @ inputs.t()).square().sum())
    assert output_error(found, weight, inputs) < 0.97 * fixed


def test_outliers_are_chosen_where_errors_cost_most(weight, inputs):
    scheme = gptq(bits=2, outliers=OutlierRule(share=0.05))
    by_output = find_outliers(weight, scheme, hessian=inputs.t() @ inputs)
    by_weight = find_outliers(weight, scheme)
    assert (by_output % 160).double().mean() > (by_weight % 160).double().mean() + 20  # later columns are larger


def test_error_weights_are_those_of_the_inverse(inputs):
    hessian = inputs.t() @ inputs
    damped = hessian.double() + 0.1 * hessian.diagonal().double().mean() * torch.eye(160, dtype=torch.float64)
    expected = torch.linalg.inv(damped).diagonal().rsqrt().float()
    torch.testing.assert_close(error_weights(hessian), expected, rtol=1e-4, atol=0)


def test_the_order_of_columns_is_an_option(weight, inputs):
    found = [
        quantize_tensor(weight, gptq(bits=2, options={"act_order": order}), hessian=inputs.t() @ inputs)
        for order in (True, False)
    ]
    assert not torch.equal(found[0].codes(), found[1].codes())
    assert all(output_error(one, weight, inputs) < 0.2 for one in found)


def test_dead_columns_do_no_harm(weight, inputs):
    inputs[:, 10:100] = 0
    found = quantize_tensor(weight, gptq(bits=3), hessian=inputs.t() @ inputs)
    assert found.dequantize().isfinite().all()
    silent = quantize_tensor(weight, gptq(bits=3), hessian=torch.zeros(160, 160))
    assert torch.equal(silent.codes(), quantize_tensor(weight, Scheme(bits=3, outliers=None)).codes())


def test_bad_hessians_and_options_are_refused(weight, inputs):
    with pytest.raises(SchemeError, match="'gptq' needs the second moments"):
        quantize_tensor(weight, gptq())
    with pytest.raises(WeightError, match=r"cannot be inverted; raise gptq's option `damping`"):
        quantize_tensor(weight, gptq(), hessian=torch.diag(torch.linspace(-0.5, 1, 160)))
    with pytest.raises(SchemeError, match="positive damping, not 0"):
        quantize_tensor(weight, gptq(options={"damping": 0}), hessian=torch.eye(160))
