import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.outliers import count_outliers, largest, select
from lowbit.scheme import OutlierRule


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("share", "weights", "count"), [(0.005, 589824, 2949), (0.5, 3, 2), (0.005, 50, 0), (0.01, 60, 1)]
)
def test_count_is_the_rounded_share(share, weights, count):
    assert count_outliers(OutlierRule(share=share), weights) == count


def test_count_of_a_sigma_threshold_is_unknown():
    assert count_outliers(OutlierRule("tail", None, 3.0), 100) is None


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_share_of_a_gaussian_beyond_k_sigma(sigma):
    weight = gaussian(500, 2000) * 0.02 + 0.1
    share = select(weight, OutlierRule("tail", None, sigma), None, None).numel() / weight.numel()
    assert share == pytest.approx(math.erfc(sigma / math.sqrt(2)), rel=0.03)


def test_sigma_threshold_is_strict_and_uses_the_population_deviation():
    weight = torch.tensor([[1.0, 3.0], [1.0, 3.0]])  # mean 2, deviation 1
    assert select(weight, OutlierRule("tail", None, 1.0), None, None).tolist() == []
    assert select(weight, OutlierRule("tail", None, 0.99), None, None).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rule", "expected"), [("tail", [0, 3]), ("magnitude", [1, 3]), ("error", [2, 4])], ids=lambda v: str(v)
)
def test_each_rule_ranks_by_its_own_score(rule, expected):
    weight = torch.tensor([[-2.0, 5.0, 4.0], [9.0, 4.0, 4.0]])  # mean 4
    error = torch.tensor([[0.0, 0.1, 0.5], [0.2, 0.5, 0.3]])
    assert select(weight, OutlierRule(rule, 1 / 3), error, None).tolist() == expected


def test_random_rule_follows_its_generator_and_leaves_the_global_one():
    rule, weight = OutlierRule("random", 0.1), gaussian(20, 30)
    state = torch.get_rng_state()
    draws = [select(weight, rule, None, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].numel() == draws[0].unique().numel() == 60
    assert torch.equal(draws[0], draws[0].sort().values)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_largest_equals_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    score = torch.tensor(values, dtype=torch.float32)
    assert largest(score, count).tolist() == sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])


SAMPLE_STRIDE = 4  # of 70,000 values every fourth is sampled
MISLEADING = {
    "gaussian": lambda n: gaussian(n),
    "constant": lambda n: torch.ones(n),
    "ascending": lambda n: torch.arange(n, dtype=torch.float32),
    "high where sampled": lambda n: (torch.arange(n) % SAMPLE_STRIDE == 0) + torch.rand(n, generator=torch.Generator()),
    "high where not sampled": lambda n: (torch.arange(n) % SAMPLE_STRIDE != 0) * (1 + gaussian(n).abs()),
    "few ties": lambda n: (gaussian(n) * 4).round(),
}


@pytest.mark.parametrize("name", MISLEADING)
@pytest.mark.parametrize("count", [1, 350, 20_000, 35_000])
def test_largest_is_exact_when_the_sample_misleads(name, count):
    score = MISLEADING[name](70_000).float()
    expected = score.sort(descending=True, stable=True).indices[:count].sort().values
    assert torch.equal(largest(score, count), expected)


@pytest.mark.parametrize("shape", [(768, 3072), (1, 100_001), (70_000, 3)], ids=str)
def test_positions_do_not_depend_on_the_number_of_threads(shape, with_threads):
    weight = gaussian(*shape) + 0.01
    for rule in (OutlierRule("tail", None, 2.0), OutlierRule("tail"), OutlierRule("magnitude")):
        one, two = with_threads(lambda rule=rule: select(weight, rule, None, None))
        assert torch.equal(one, two)


@pytest.mark.parametrize("count", [1, 35, 16_384, 16_385, 100_001, 768 * 3072])
def test_sigma_threshold_is_the_same_for_every_number_of_threads(count, with_threads):
    flat = gaussian(count) * 1e-3 + 10
    before = flat.clone()
    rule = OutlierRule("tail", share=None, sigma=2.0)
    one, two = with_threads(lambda: select(flat.view(1, -1), rule, None, None))
    assert torch.equal(one, two)
    assert torch.equal(flat, before)
    wide = flat.double()
    far = (wide - wide.mean()).abs() > 2 * wide.std(correction=0)
    assert one.numel() == pytest.approx(int(far.sum()), rel=0.01)  # distances are rounded to float32
