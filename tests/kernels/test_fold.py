import pytest
import torch

from lowbit.kernels import fold, fold_values
from lowbit.kernels.fold import entries
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme

OUT, IN = 24, 64
EXACT = [
    {"bits": 4},
    {"bits": 2},
    {"bits": 3, "symmetric": False},
    {"bits": 5, "granularity": "tensor"},
    {"bits": 4, "outliers": None},
]
ROUNDED = [
    {"bits": 8},
    {"granularity": "group", "group_size": 16},
    {"bits": 3, "strategy": "kmeans"},
    {"bits": 3, "levels": "shared-codebook", "strategy": "kmeans"},
]


def weight(largest=0.5):
    found = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * 0.05
    found[3, 5] = largest
    return found


@pytest.mark.parametrize("limit", [32, 64, 127])
@pytest.mark.parametrize("scheme", EXACT, ids=str)
def test_codes_of_rows_on_a_grid_stay_exact_and_only_outliers_are_rounded(scheme, limit):
    tensor = quantize_tensor(weight(), Scheme(**scheme))
    folded = fold(tensor, (limit,))
    assert folded.codes.dtype == torch.int8
    assert folded.codes.abs().max() <= limit
    assert folded.exact_rows == OUT
    difference = (folded.weight() - tensor.dequantize()).abs()
    outliers = torch.zeros(OUT * IN, dtype=torch.bool)
    outliers[tensor.outlier_positions()] = True
    torch.testing.assert_close(difference.view(-1)[~outliers], torch.zeros(int((~outliers).sum())), atol=1e-7, rtol=0)
    assert (difference <= folded.scale[:, None] / 2 * 1.001).all()
    relative = difference.norm() / tensor.dequantize().norm()
    assert folded.error == pytest.approx(float(relative), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("limit", [64, 127])
@pytest.mark.parametrize("scheme", ROUNDED, ids=str)
def test_other_rows_are_rounded_to_the_limit(scheme, limit):
    tensor = quantize_tensor(weight(), Scheme(**scheme))
    folded = fold(tensor, (limit,))
    assert folded.codes.abs().max() <= limit
    assert 0 < folded.error < 1.5 / limit
    assert ((folded.weight() - tensor.dequantize()).abs() <= folded.scale[:, None] / 2 * 1.001).all()


def test_what_lies_beyond_the_limit_is_kept_apart():
    tensor = quantize_tensor(weight(largest=50.0), Scheme(bits=4))
    folded = fold(tensor, (32,))
    assert folded.rest.rows().tolist() == [3]
    assert folded.rest.col.tolist() == [5]
    assert folded.codes[3, 5] == 32
    assert folded.weight()[3, 5] == pytest.approx(50.0)
    assert folded.exact_rows == OUT


def test_rows_of_zeros():
    found = weight()
    found[7] = 0
    folded = fold(quantize_tensor(found, Scheme(bits=4, outliers=None)), (64,))
    assert folded.scale.isfinite().all()
    assert not folded.weight()[7].any()


def test_the_smallest_limit_that_leaves_outliers_room_is_chosen():
    def chosen(**scheme):
        return fold(quantize_tensor(weight(), Scheme(**scheme)), (16, 32, 64)).limit

    assert [chosen(bits=bits) for bits in (2, 3, 4, 5, 6, 8)] == [16, 16, 16, 32, 64, 64]
    assert chosen(granularity="group", group_size=16) == 64
    assert fold(quantize_tensor(weight(), Scheme(bits=4)), (127,)).limit == 127


def test_values_as_codes_and_what_a_clipped_one_misses():
    codes, missing = fold_values(torch.tensor([1.0, -0.26, 9.0]), torch.tensor(0.5), 4)
    assert codes.tolist() == [2, -1, 4]
    assert missing.tolist() == [0, 0, 7]


def test_entries_are_replaced_by_position():
    rest = entries(torch.tensor([1, 9]), torch.tensor([5.0, 6.0]), (3, 4))
    new = rest.updated(torch.tensor([9, 2]), torch.tensor([0.0, 7.0]), 4)
    assert new.rows().tolist() == [0, 0]
    assert (new.col.tolist(), new.value.tolist()) == ([1, 2], [5, 7])
