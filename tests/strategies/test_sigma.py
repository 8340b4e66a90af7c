import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme


def sigma(**fields):
    return Scheme(strategy="sigma", **{"outliers": None, **fields})


@pytest.fixture
def weight():
    return torch.randn(6, 400, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("width", [None, 3.0, 8.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_grid_is_width_deviations_wide(weight, bits, width):
    found = quantize_tensor(weight, sigma(bits=bits, options={} if width is None else {"width": width}))
    expected = (width or 6.0) * weight.double().std(dim=1, correction=0, keepdim=True) / (2**bits - 1)
    torch.testing.assert_close(found.scale, expected.float())


def test_four_bits_have_steps_of_0_4_deviations_and_clip_at_three(weight):
    found = quantize_tensor(weight, sigma(granularity="tensor"))
    deviation = float(weight.std(correction=0))
    assert found.scale.item() == pytest.approx(0.4 * deviation)
    assert found.dequantize().min().item() == pytest.approx(-3.2 * deviation)
    assert found.dequantize().max().item() == pytest.approx(2.8 * deviation)


def test_an_asymmetric_grid_is_centred_at_the_mean(weight):
    mean, deviation = 0.04, float(weight.std(correction=0))
    found = quantize_tensor(weight - weight.mean() + mean, sigma(symmetric=False, granularity="tensor", bits=8))
    assert found.dequantize().min().item() == pytest.approx(mean - 3 * deviation, rel=0.01)
    assert found.dequantize().max().item() == pytest.approx(mean + 3 * deviation, rel=0.01)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_outliers_do_not_widen_the_grid(weight, symmetric):
    weight = weight + 0.2
    expected = quantize_tensor(weight[:, 10:].contiguous(), sigma(symmetric=symmetric))
    weight[:, :10] = 9.0
    scheme = sigma(symmetric=symmetric, outliers=OutlierRule("magnitude", 10 / 400))
    found = quantize_tensor(weight, scheme)
    assert found.outlier_count == 60
    torch.testing.assert_close(found.scale, expected.scale)


def test_a_constant_matrix_at_zero_gets_step_1():
    assert quantize_tensor(torch.zeros(2, 3), sigma()).scale.tolist() == [[1], [1]]


@pytest.mark.parametrize("width", [0, -1.0])
def test_a_width_that_is_not_positive_is_refused(weight, width):
    with pytest.raises(SchemeError, match=f"positive width, not {width}"):
        quantize_tensor(weight, sigma(options={"width": width}))
