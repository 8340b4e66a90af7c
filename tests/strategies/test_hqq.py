import pytest
import torch

from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

GRANULARITIES = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 16}]
GRIDS = [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}]


def heavy(*shape):
    """Student's t with three degrees of freedom, off centre."""
    draw = torch.randn((4, *shape), generator=torch.Generator().manual_seed(0))
    return draw[0] / draw[1:].square().mean(dim=0).sqrt() + 0.3


def absolute_error(weight, scheme):
    return float((quantize_tensor(weight, scheme).dequantize() - weight).abs().double().sum())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g["granularity"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_absolute_error_is_below_that_of_mse(bits, grid, granularity):
    weight = heavy(48, 64)
    for outliers in (None, OutlierRule("tail", 0.02)):
        ours, mse = (
            absolute_error(weight, Scheme(bits=bits, strategy=name, outliers=outliers, **grid, **granularity))
            for name in ("hqq", "mse")
        )
        assert ours < mse if granularity["granularity"] != "tensor" else ours <= mse


def test_a_symmetric_step_shrinks_where_a_few_weights_are_far():
    weight = heavy(8, 512)
    steps = {name: quantize_tensor(weight, Scheme(strategy=name, outliers=None)).scale for name in ("hqq", "mse")}
    assert steps["hqq"].mean() < steps["mse"].mean()


def test_an_asymmetric_grid_keeps_the_zero_point_of_mse():
    weight = heavy(48, 64)
    found = [quantize_tensor(weight, Scheme(symmetric=False, strategy=name, outliers=None)) for name in ("hqq", "mse")]
    assert torch.equal(found[0].zero_point, found[1].zero_point)
    assert not torch.equal(found[0].scale, found[1].scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_result_follows_the_scale_of_the_weights(grid):
    weight = heavy(8, 64)
    one, small = (quantize_tensor(weight * factor, Scheme(strategy="hqq", **grid)) for factor in (1, 2.0**-10))
    assert torch.equal(one.weight, small.weight)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_outliers_do_not_count(grid):
    weight, scheme = heavy(8, 64), Scheme(strategy="hqq", outliers=OutlierRule("magnitude", 0.05), **grid)
    found = quantize_tensor(weight, scheme)
    weight.view(-1)[found.outlier_positions()] *= 100
    assert torch.equal(quantize_tensor(weight, scheme).scale, found.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_groups_of_zeros_and_of_outliers_stay_finite(grid):
    weight = torch.zeros(3, 8)
    weight[0] = 5.0
    found = quantize_tensor(weight, Scheme(strategy="hqq", outliers=OutlierRule("magnitude", 1 / 3), **grid))
    assert found.scale.isfinite().all()
    assert torch.equal(found.dequantize()[0], weight[0])


def test_the_bytes_do_not_depend_on_the_number_of_threads(with_threads):
    weight = heavy(300, 3000)
    one, two = with_threads(lambda: quantize_tensor(weight, Scheme(strategy="hqq")))
    assert torch.equal(one.scale, two.scale)
    assert torch.equal(one.weight, two.weight)
