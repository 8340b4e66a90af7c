import pytest
import torch

from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def student(*shape):
    """Student's t with three degrees of freedom: heavy tails."""
    return gaussian(*shape) / gaussian(3, *shape, seed=1).square().mean(dim=0).sqrt()


def one_far_value():
    weight = gaussian(48, 64)
    weight[3, 4] = 100.0
    return weight


WEIGHTS = {
    "gaussian": gaussian(48, 64),
    "student": student(48, 64),
    "one far value": one_far_value(),
    "skewed": gaussian(48, 64).abs() + 0.1,
}
GRANULARITIES = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 16}]


def squared_error(weight, **fields):
    return float((quantize_tensor(weight, Scheme(**fields)).dequantize() - weight).double().square().mean())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g["granularity"])
@pytest.mark.parametrize("grid", [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_never_worse_than_minmax_and_sigma(name, bits, grid, granularity):
    slack = 1.001 if granularity["granularity"] == "group" else 1 + 1e-6  # float16 steps
    for outliers in (None, OutlierRule("tail")):  # a rule whose choice does not depend on the strategy
        fields = {"bits": bits, "outliers": outliers, **grid, **granularity}
        best = squared_error(WEIGHTS[name], strategy="mse", **fields)
        for other in ("minmax", "sigma"):
            assert best <= slack * squared_error(WEIGHTS[name], strategy=other, **fields)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("levels", "expected"), [("midrise", 0.119), ("full", 0.150)])
def test_error_of_a_unit_gaussian_at_2_bits(levels, expected, granularity):
    """The least errors that uniform grids of four levels reach."""
    found = squared_error(gaussian(100, 4000), bits=2, levels=levels, granularity=granularity, outliers=None)
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("levels", ["full", "midrise"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_step_nearby_is_better(bits, levels):
    weight = gaussian(1, 4000)
    scheme = Scheme(bits=bits, levels=levels, outliers=None)
    scale = quantize_tensor(weight, scheme).scale
    steps = torch.arange(2**bits) - scheme.offset

    def error(step):
        return float(((weight[0, :, None] - steps * step).abs().amin(dim=1) ** 2).mean())

    best = error(float(scale))
    assert all(best <= 1.002 * error(float(scale) * factor) for factor in (0.9, 0.95, 0.98, 1.02, 1.05, 1.1))


@pytest.mark.parametrize("levels", ["full", "midrise"])
def test_the_step_ignores_the_outliers(levels):
    """Midrise grids have no zero: what stands in for the outliers must not count."""
    weight, rule = gaussian(4, 300), OutlierRule("magnitude", 0.1)
    positions = quantize_tensor(weight, Scheme(bits=2, outliers=rule)).outlier_positions()
    changed = weight.clone()
    changed.view(-1)[positions] *= 100
    steps = [quantize_tensor(w, Scheme(bits=2, levels=levels, outliers=rule)).scale for w in (weight, changed)]
    assert torch.equal(*steps)
    kept = torch.ones(1200, dtype=torch.bool).index_fill_(0, positions, False).view_as(weight)[:1]
    alone = quantize_tensor(weight[:1][kept][None], Scheme(bits=2, levels=levels, outliers=None)).scale
    torch.testing.assert_close(steps[0][:1], alone, rtol=0.01, atol=0)
