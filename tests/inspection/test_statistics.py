import math

import pytest
import torch

from lowbit.inspection.statistics import difference, norm, ratio, statistics
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme

KEYS = [
    "scale_min",
    "scale_max",
    "at_ends",
    "entropy",
    "outliers",
    "outlier_share",
    "outlier_largest",
    "outlier_reach",
    "outlier_sigma",
    "outlier_rows",
    "outlier_columns",
]


def of(weight, text):
    return statistics(quantize_tensor(weight, Scheme.parse(text)))


def gaussian(rows=64, columns=256):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_every_number_is_there():
    assert list(of(gaussian(), "w4")) == list(of(gaussian(), "w4o0")) == KEYS


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_that_are_used_evenly_carry_all_bits(bits):
    levels = torch.arange(2**bits).repeat(8, 4) - (2 ** (bits - 1) - 0.5 if bits == 2 else 2 ** (bits - 1))
    found = of(levels.float(), {"bits": bits, "strategy": "minmax", "outliers": None})
    assert found["entropy"] == pytest.approx(bits)
    assert found["at_ends"] == pytest.approx(2 / 2**bits)


def test_one_code_carries_nothing():
    found = of(torch.zeros(4, 8), "w4o0")
    assert (found["entropy"], found["at_ends"]) == (0, 0)


def test_a_clipped_weight_stands_at_the_ends():
    narrow = of(gaussian(), {"bits": 4, "strategy": "sigma", "options": {"width": 2.0}, "outliers": None})
    wide = of(gaussian(), {"bits": 4, "strategy": "minmax", "outliers": None})
    assert narrow["at_ends"] > 0.25 > 0.02 > wide["at_ends"]


def test_outliers_are_sized_and_placed():
    weight = 0.1 * gaussian()
    weight[:, 7] = 3.0
    weight[5, :20] = 4.0
    rule = {"rule": "magnitude", "share": (64 + 19) / weight.numel()}
    found = of(weight, {"bits": 4, "strategy": "minmax", "outliers": rule})
    tensor = quantize_tensor(weight, Scheme(bits=4, strategy="minmax", outliers=OutlierRule(**rule)))
    dense = tensor.dequantize_dense().view(-1)
    keep = torch.ones(weight.numel(), dtype=torch.bool)
    keep[tensor.outlier_positions()] = False
    assert found["outliers"] == 83
    assert found["outlier_share"] == 83 / weight.numel()
    assert found["outlier_largest"] == 4
    assert found["outlier_reach"] == pytest.approx(4 / float(dense[keep].abs().max()), rel=1e-6)
    assert found["outlier_sigma"] == pytest.approx(3 / float(dense[keep].std(correction=0)), rel=1e-5)
    assert found["outlier_rows"][0] == [5, 20]
    assert found["outlier_columns"] == [[7, 64], [0, 1], [1, 1]]


def test_codes_in_the_place_of_outliers_do_not_count():
    weight = torch.tensor([[1.0, -1.0] * 8])
    weight[0, 3] = 100
    scheme = {"bits": 2, "levels": "full", "strategy": "minmax", "outliers": {"rule": "magnitude", "share": 1 / 16}}
    assert of(weight, scheme)["entropy"] == pytest.approx(-sum(p * math.log2(p) for p in (8 / 15, 7 / 15)))


def test_without_outliers_sizes_are_unknown():
    found = of(gaussian(), "w4o0")
    assert [found[key] for key in KEYS[4:]] == [0, 0, None, None, None, [], []]


def test_groups_codebooks_and_zero_points():
    scheme = Scheme(bits=4, symmetric=False, granularity="group", group_size=32)
    tensor = quantize_tensor(gaussian() + 1, scheme)
    found = statistics(tensor)
    assert (found["scale_min"], found["scale_max"]) == (float(tensor.scale.min()), float(tensor.scale.max()))
    assert 3 < found["entropy"] <= 4


def test_relative_numbers():
    assert (ratio(1, 4), ratio(1, 0)) == (0.25, None)
    assert norm(torch.tensor([3.0, 4.0])) == 5
    assert difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert difference(torch.ones(2), torch.zeros(2)) is None
