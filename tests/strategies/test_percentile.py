import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

STEPS = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 50}]


def percentile(**fields):
    return Scheme(**{"strategy": "percentile", "outliers": None, **fields})


def ramp():
    """Magnitudes 1 to 200 of alternating signs, in a mixed order, times 1 and 2."""
    values = torch.arange(1.0, 201) * torch.tensor([1.0, -1.0]).repeat(100)
    values = values[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    return torch.stack([values, 2 * values])


@pytest.mark.parametrize(("percent", "reach"), [(99.5, 199), (90, 180), (90.1, 181), (100, 200)])
def test_the_grid_reaches_the_percentile_of_the_magnitudes(percent, reach):
    scale = quantize_tensor(ramp(), percentile(levels="midrise", options={"percent": percent})).scale
    assert (scale * 7.5).flatten().tolist() == pytest.approx([reach, 2 * reach])
    if percent == 99.5:
        assert torch.equal(quantize_tensor(ramp(), percentile(levels="midrise")).scale, scale)


def test_an_asymmetric_grid_leaves_out_as_much_at_either_end():
    weight = torch.arange(-100.0, 300)[None]
    found = quantize_tensor(weight, percentile(bits=8, symmetric=False, options={"percent": 90}))
    assert found.scale.item() == pytest.approx((279 + 80) / 255)
    assert found.zero_point.item() == round(80 / found.scale.item())


@pytest.mark.parametrize("grid", [{"levels": "full"}, {"levels": "midrise"}, {"symmetric": False}], ids=str)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
def test_outliers_do_not_count(step, grid):
    weight = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    rule = OutlierRule("magnitude", 0.1)
    scheme = percentile(outliers=rule, options={"percent": 80}, **step, **grid)
    found = quantize_tensor(weight, scheme)
    weight.view(-1)[found.outlier_positions()] *= 100
    assert torch.equal(quantize_tensor(weight, scheme).scale, found.scale)
    if step["granularity"] == "tensor":
        inliers = torch.ones(800, dtype=torch.bool).index_fill_(0, found.outlier_positions(), False)
        alone = quantize_tensor(weight.view(1, -1)[:, inliers], percentile(options={"percent": 80}, **step, **grid))
        assert torch.equal(alone.scale, found.scale)


def test_a_far_weight_does_not_stretch_the_grid_as_with_minmax():
    weight = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    weight[:, 7] = 1000
    clipped, stretched = (quantize_tensor(weight, percentile(strategy=name)) for name in ("percentile", "minmax"))
    assert clipped.scale.max() < 0.5
    assert stretched.scale.min() > 100


def test_groups_without_weights_or_without_values_get_step_1():
    weight = torch.zeros(2, 8)
    weight[0] = torch.arange(1.0, 9)
    found = quantize_tensor(weight, percentile(outliers=OutlierRule("magnitude", 0.5)))
    assert found.scale.tolist() == [[1], [1]]


def test_the_bytes_do_not_depend_on_the_number_of_threads(with_threads):
    weight = torch.randn(300, 3000, generator=torch.Generator().manual_seed(0))
    for fields in ({}, {"granularity": "tensor"}, {"symmetric": False}):
        one, two = with_threads(lambda fields=fields: quantize_tensor(weight, percentile(**fields)).scale)
        assert torch.equal(one, two)


@pytest.mark.parametrize("percent", [0, -1.0, 100.5])
def test_a_percent_that_is_none_is_refused(percent):
    with pytest.raises(SchemeError, match=f"percent above 0 and up to 100, not {percent}"):
        quantize_tensor(ramp(), percentile(options={"percent": percent}))
