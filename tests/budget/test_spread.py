import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.budget import spread_outliers
from lowbit.budget.spread import error_histogram, share_out
from lowbit.errors import WeightError
from lowbit.outliers import count_outliers
from lowbit.plan import make_plan
from lowbit.qtensor import outlier_errors, quantize_tensor
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme
from tests.models import tiny_model

SPREAD = Scheme(outliers=OutlierRule(share=0.02, spread="model"))
TAILED = "encoder.layer.0.output.dense"


def spread(model, recipe):
    plan = make_plan(model, recipe)
    return spread_outliers(plan, lambda entry: model.get_submodule(entry.name).weight.data)


def counts(plan):
    return {
        entry.name: count_outliers(entry.scheme.outliers, math.prod(entry.shape)) if entry.scheme.outliers else 0
        for entry in plan.quantized
        if entry.kind != "embedding"
    }


@pytest.fixture
def model():
    """One matrix has a tail of its own, another none at all."""
    model = tiny_model("bert", "BertModel")
    model.get_submodule(TAILED).weight.data.pow_(3)
    even = model.encoder.layer[1].intermediate.dense.weight.data
    even.copy_(torch.linspace(-1, 1, even.numel()).view(even.shape))
    return model


def test_the_total_is_kept_and_a_matrix_without_a_tail_gets_none(model):
    before = make_plan(model, Recipe(scheme=SPREAD))
    found = counts(spread(model, Recipe(scheme=SPREAD)))
    assert sum(found.values()) == sum(counts(before).values())
    assert found["encoder.layer.1.intermediate.dense"] == 0


def test_what_the_plan_says_is_what_quantization_keeps(model):
    plan = spread(model, Recipe(scheme=SPREAD))
    for entry in plan.quantized:
        tensor = quantize_tensor(model.get_submodule(entry.name).weight.data, entry.scheme)
        assert tensor.outlier_count == counts(plan).get(entry.name, 0)


def test_the_scale_of_a_matrix_does_not_matter(model):
    before = counts(spread(model, Recipe(scheme=SPREAD)))
    model.get_submodule(TAILED).weight.data.mul_(2.0**5)
    assert counts(spread(model, Recipe(scheme=SPREAD))) == before


def test_overrides_with_a_share_of_their_own_keep_it(model):
    recipe = Recipe.parse({"scheme": SPREAD, "overrides": [{"match": TAILED, "scheme": "w4o1"}]})
    before, after = make_plan(model, recipe), spread(model, recipe)
    assert counts(after)[TAILED] == counts(before)[TAILED]
    assert sum(counts(after).values()) == sum(counts(before).values())


def test_without_a_spread_no_weight_is_read():
    plan = make_plan(tiny_model("bert", "BertModel"), Recipe())
    assert spread_outliers(plan, lambda entry: pytest.fail("read")) is plan


def test_the_threshold_is_common(model):
    plan = spread(model, Recipe(scheme=SPREAD))
    lowest, highest = [], []
    for entry in plan.quantized:
        if entry.kind == "embedding" or not counts(plan)[entry.name]:
            continue
        weight = model.get_submodule(entry.name).weight.data
        error = outlier_errors(weight, SPREAD).view(-1).sort(descending=True).values / weight.square().mean().sqrt()
        lowest.append(float(error[counts(plan)[entry.name] - 1]))
        highest.append(float(error[counts(plan)[entry.name]]))
    assert min(lowest) >= max(highest) * 2 ** (-1 / 128)  # but for the width of a bin


@given(st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=6), min_size=1, max_size=5), st.data())
def test_counts_add_up(rows, data):
    total = sum(map(sum, rows))
    budget = data.draw(st.integers(0, total))
    if total == 0:
        return
    histograms = {str(index): torch.tensor(row) for index, row in enumerate(rows)}
    found = share_out(histograms, budget)
    assert sum(found.values()) == budget
    assert all(0 <= found[name] <= int(row.sum()) for name, row in histograms.items())


def test_a_matrix_of_zeros_has_no_error():
    histogram = error_histogram(torch.zeros(4, 32), SPREAD)
    assert histogram[0] == histogram.sum() == 128


def test_nan_is_named(model):
    model.get_submodule(TAILED).weight.data[0, 0] = float("nan")
    with pytest.raises(WeightError, match=rf"^{TAILED}: 1 of 1536"):
        spread(model, Recipe(scheme=SPREAD))
