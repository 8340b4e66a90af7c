import pytest
import torch

from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

GRANULARITIES = [
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "group", "group_size": 8},
]
GRIDS = [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}]


@pytest.fixture
def weight():
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g["granularity"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nothing_is_clipped(weight, bits, grid, granularity):
    found = quantize_tensor(weight, Scheme(bits=bits, strategy="minmax", outliers=None, **grid, **granularity))
    groups = weight.view(-1, found.scale.shape[1], 32 // found.scale.shape[1])
    error = (found.dequantize().view_as(groups) - groups).abs()
    # The zero point and a float16 step are rounded, which moves the ends of the grid.
    slack = 1e-5 if granularity["granularity"] != "group" else 2.0**bits * 2**-11
    assert (error <= found.scale.float()[:, :, None] * (0.5 + slack)).all()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g["granularity"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_step_is_that_of_the_matrix_without_the_outliers(weight, grid, granularity):
    weight.view(-1)[[5, 100, 101, 300]] = torch.tensor([50.0, -80.0, 60.0, -70.0])
    scheme = Scheme(strategy="minmax", outliers=OutlierRule("magnitude", 4 / weight.numel()), **grid, **granularity)
    found = quantize_tensor(weight, scheme)
    assert found.outlier_positions().tolist() == [5, 100, 101, 300]
    without = weight.masked_fill(weight.abs() > 40, 0)
    expected = quantize_tensor(without, Scheme(strategy="minmax", outliers=None, **grid, **granularity))
    assert torch.equal(found.scale, expected.scale)
    assert (found.zero_point is None) == (expected.zero_point is None)
    assert found.zero_point is None or torch.equal(found.zero_point, expected.zero_point)


def test_the_step_by_hand():
    weight = torch.tensor([[-4.0, 3.5], [-2.0, 7.0]])
    assert quantize_tensor(weight, Scheme(strategy="minmax", outliers=None)).scale.tolist() == [[0.5], [1.0]]
    midrise = Scheme(bits=2, strategy="minmax", granularity="tensor", outliers=None)
    assert quantize_tensor(weight, midrise).scale.item() == pytest.approx(7 / 1.5)
    shifted = quantize_tensor(weight, Scheme(symmetric=False, strategy="minmax", outliers=None))
    assert shifted.scale.tolist() == [[0.5], [pytest.approx(0.6)]]
    assert shifted.zero_point.tolist() == [[8], [3]]
