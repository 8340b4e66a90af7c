import pytest
import torch

from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme


def lsq(**fields):
    return Scheme(strategy="lsq", **{"outliers": None, **fields})


@pytest.fixture
def weight():
    return torch.randn(6, 400, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize(
    ("bits", "levels", "largest"), [(2, "midrise", 1.5), (2, "full", 1), (3, "full", 3), (8, "full", 127)]
)
def test_the_step_is_twice_the_mean_magnitude_over_the_root_of_the_largest_level(weight, bits, levels, largest):
    found = quantize_tensor(weight, lsq(bits=bits, levels=levels))
    torch.testing.assert_close(found.scale, 2 * weight.abs().mean(dim=1, keepdim=True) / largest**0.5)


def test_an_asymmetric_grid_has_the_step_of_lsq_plus_and_is_centred_at_the_mean(weight):
    weight = weight + 0.02
    found = quantize_tensor(weight, lsq(symmetric=False, granularity="tensor"))
    mean, std = float(weight.mean()), float(weight.std(correction=0))
    assert found.scale.item() == pytest.approx((mean + 3 * std) / 8, rel=1e-5)
    assert found.zero_point.item() == round(7.5 - mean / found.scale.item())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_outliers_do_not_count(weight, symmetric):
    expected = quantize_tensor(weight[:, 10:].contiguous(), lsq(symmetric=symmetric))
    weight[:, :10] = 9.0
    found = quantize_tensor(weight, lsq(symmetric=symmetric, outliers=OutlierRule("magnitude", 10 / 400)))
    assert found.outlier_count == 60
    torch.testing.assert_close(found.scale, expected.scale)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_constant_matrix_at_zero_gets_step_1(symmetric):
    found = quantize_tensor(torch.zeros(2, 3), lsq(symmetric=symmetric))
    assert found.scale.tolist() == [[1], [1]]
    assert not found.dequantize().any()
