import itertools

import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

STEPS = [{"granularity": "tensor"}, {"granularity": "channel"}, {"granularity": "group", "group_size": 64}]
LEVELS = ["codebook", "shared-codebook"]


def kmeans(**fields):
    return Scheme(strategy="kmeans", **{"outliers": None, **fields})


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape):
    """Student's t with three degrees of freedom; rows of unlike size."""
    weight = gaussian(*shape) / gaussian(3, *shape, seed=1).square().mean(dim=0).sqrt()
    return weight * torch.linspace(0.5, 2, shape[0])[:, None]


def squared_error(weight, scheme):
    return float((quantize_tensor(weight, scheme).dequantize() - weight).double().square().sum())


@pytest.mark.parametrize("outliers", [None, OutlierRule("tail")], ids=["", "outliers"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("weight", [gaussian(48, 256), heavy(48, 256)], ids=["gaussian", "student"])
def test_the_error_is_below_that_of_mse(weight, bits, step, levels, outliers):
    ours = squared_error(weight, kmeans(bits=bits, levels=levels, outliers=outliers, **step))
    assert ours < squared_error(weight, Scheme(bits=bits, outliers=outliers, **step))


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
@pytest.mark.parametrize("levels", LEVELS)
def test_error_of_a_unit_gaussian(levels, bits, expected):
    """Max 1960: the least error that any levels reach."""
    weight = gaussian(50, 8000)
    found = squared_error(weight, kmeans(bits=bits, levels=levels)) / weight.numel()
    assert found == pytest.approx(expected, rel=0.02)


def test_the_error_is_near_the_least_by_exhaustive_search():
    """Of every split of a few sorted weights into runs; Lloyd's iteration ends in a local optimum."""
    found = least = 0.0
    for seed in range(20):
        weight = gaussian(1, 11, seed=seed)
        values = weight[0].double().sort().values
        least += min(
            sum(float((run - run.mean()).square().sum()) for run in values.tensor_split(cuts))
            for cuts in itertools.combinations(range(1, 11), 3)
        )
        found += squared_error(weight, kmeans(bits=2))
    assert least < found < 1.2 * least


def test_entries_ascend_and_reach_one_in_16_bits():
    found = quantize_tensor(heavy(8, 256), kmeans())
    assert found.codebook.dtype == torch.float16
    assert found.codebook.shape == (8, 16)
    assert (found.codebook.diff(dim=1) > 0).all()
    assert found.codebook.abs().amax(dim=1).tolist() == [1] * 8
    shared = quantize_tensor(heavy(8, 256), kmeans(levels="shared-codebook"))
    assert shared.codebook.shape == (1, 16)
    assert (shared.codebook.diff(dim=1) > 0).all()
    assert shared.scale.unique().numel() == 8


def test_few_distinct_weights_are_kept():
    """One value fills nearly all of a row, the others lie close together and far away."""
    weight = torch.zeros(4, 512)
    weight[0, :3] = torch.tensor([1.0, 1.001, -0.5])
    weight[1, :] = 0.3
    weight[2, ::2] = -7.0
    weight[3, :7] = torch.tensor([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 1.0])
    found = quantize_tensor(weight, kmeans(bits=3)).dequantize()
    torch.testing.assert_close(found, weight, rtol=2**-11, atol=1e-7)
    assert torch.equal(found[1:3], weight[1:3])


def test_groups_smaller_than_their_codebook_are_kept():
    weight = gaussian(4, 12)
    found = quantize_tensor(weight, kmeans(granularity="group", group_size=4)).dequantize()
    torch.testing.assert_close(found, weight, rtol=2**-9, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_groups_of_zeros_and_of_outliers_stay_finite(levels):
    weight = torch.zeros(4, 8)
    weight[0], weight[1] = 5.0, torch.arange(8.0) / 10
    found = quantize_tensor(weight, kmeans(bits=3, levels=levels, outliers=OutlierRule("magnitude", 0.25)))
    assert torch.equal(found.dequantize()[0], weight[0])
    assert found.scale.isfinite().all()
    assert found.codebook.isfinite().all()
    if levels == "codebook":
        torch.testing.assert_close(found.dequantize(), weight, rtol=2**-10, atol=0)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
def test_outliers_do_not_count(step, levels):
    weight, scheme = gaussian(8, 128), kmeans(levels=levels, outliers=OutlierRule("magnitude", 0.05), **step)
    found = quantize_tensor(weight, scheme)
    weight.view(-1)[found.outlier_positions()] *= 100
    again = quantize_tensor(weight, scheme)
    assert torch.equal(again.scale, found.scale)
    assert torch.equal(again.codebook, found.codebook)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s["granularity"])
def test_the_bytes_do_not_depend_on_the_number_of_threads(step, levels, with_threads):
    weight = heavy(96, 3072)
    one, two = with_threads(lambda: quantize_tensor(weight, kmeans(levels=levels, outliers=OutlierRule(), **step)))
    assert all(torch.equal(value, two.to_tensors()[name]) for name, value in one.to_tensors().items())


def test_a_shared_codebook_needs_hardly_more_room_than_a_grid():
    weight = heavy(64, 512)
    sizes = {
        levels: sum(t.nbytes for t in quantize_tensor(weight, kmeans(levels=levels)).to_tensors().values())
        for levels in LEVELS
    }
    uniform = sum(t.nbytes for t in quantize_tensor(weight, Scheme(outliers=None)).to_tensors().values())
    assert sizes == {"codebook": uniform + 64 * 16 * 2, "shared-codebook": uniform + 16 * 2}


def test_a_uniform_grid_is_refused():
    with pytest.raises(SchemeError, match="'kmeans' has no levels 'full'; use codebook or shared-codebook"):
        quantize_tensor(gaussian(2, 8), kmeans(levels="full"))
