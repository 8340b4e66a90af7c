import itertools
import math

import pytest

from lowbit.budget import choose_bits
from lowbit.errors import SchemeError
from lowbit.plan import make_plan
from lowbit.recipe import Recipe
from tests.models import tiny_model

NAMES = [
    f"encoder.layer.0.{name}"
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]


def plan_for(target, **recipe):
    model = tiny_model("bert", "BertModel", num_hidden_layers=1)
    return make_plan(model, Recipe.parse({"scheme": "w4o0", "target_bits": target, **recipe}))


def costs_for(sensitivities):
    """Costs that fall by a factor of four with each bit."""
    return {name: {bits: value / 4**bits for bits in range(2, 9)} for name, value in sensitivities.items()}


def widths(plan):
    return {entry.name: entry.scheme.bits for entry in plan.quantized if entry.kind != "embedding"}


def total(plan, costs):
    return sum(costs[name][bits] for name, bits in widths(plan).items())


SENSITIVITIES = dict(zip(NAMES, [1.0, 0.2, 30.0, 3.0, 8.0, 0.05], strict=True))


@pytest.mark.parametrize("target", [3.1, 3.5, 4.3, 6.0, 8.9])
def test_the_target_is_met_from_below_and_no_step_is_left(target):
    plan = choose_bits(plan_for(target), costs_for(SENSITIVITIES))
    shapes = {entry.name: math.prod(entry.shape) for entry in plan.quantized if entry.kind == "linear"}
    assert plan.effective_bits <= target
    for name, bits in widths(plan).items():
        assert bits == 8 or plan.effective_bits + shapes[name] / sum(shapes.values()) > target


def test_what_is_sensitive_gets_more_bits():
    found = widths(choose_bits(plan_for(4.3), costs_for(SENSITIVITIES)))
    order = sorted(NAMES, key=SENSITIVITIES.__getitem__)
    assert [found[name] for name in order] == sorted(found[name] for name in order)
    assert found[NAMES[2]] > found[NAMES[5]]


def test_close_to_the_best_of_all_choices():
    costs = costs_for(SENSITIVITIES)
    plan = choose_bits(plan_for(3.7), costs)
    shapes = {entry.name: math.prod(entry.shape) for entry in plan.quantized}
    weights = sum(shapes[name] for name in NAMES)
    room = (3.7 - plan.effective_bits) * weights + sum(bits * shapes[name] for name, bits in widths(plan).items())
    best = min(
        sum(costs[name][bits] for name, bits in zip(NAMES, choice, strict=True))
        for choice in itertools.product(range(2, 6), repeat=6)
        if sum(bits * shapes[name] for name, bits in zip(NAMES, choice, strict=True)) <= room
    )
    assert total(plan, costs) <= 1.05 * best


def test_a_width_that_pays_late_is_reached():
    costs = {name: dict.fromkeys(range(2, 9), 0.0) for name in NAMES}
    costs[NAMES[0]] = dict(zip(range(2, 9), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], strict=True))  # 3 bits do nothing
    found = widths(choose_bits(plan_for(3.3), costs))
    assert found[NAMES[0]] >= 4


def test_overrides_keep_their_width_but_count():
    recipe = {"overrides": [{"match": "*.query", "scheme": "w8o0"}], "skip": ["*.key"]}
    costs = costs_for({name: value for name, value in SENSITIVITIES.items() if name not in NAMES[:2]})
    plan = choose_bits(plan_for(5.3, **recipe), costs)
    found = widths(plan)
    assert found[NAMES[0]] == 8
    assert NAMES[1] not in found
    assert 5.0 < plan.effective_bits <= 5.3
    assert {entry.name for entry in plan.quantized if entry.reason} == set(costs)


def test_two_bits_take_their_own_default_levels():
    plan = choose_bits(plan_for(3.5), costs_for(dict.fromkeys(NAMES, 1.0)))
    assert {entry.scheme.levels for entry in plan.quantized if entry.scheme.bits == 2} == {"midrise"}


@pytest.mark.parametrize("target", [0.5, 20])
def test_a_target_out_of_reach_names_the_range(target):
    costs = costs_for(SENSITIVITIES)
    with pytest.raises(SchemeError, match=r"cannot be met; this recipe reaches ([\d.]+) to ([\d.]+)") as caught:
        choose_bits(plan_for(target), costs)
    low, high = (float(word) for word in str(caught.value).split("reaches ")[1].split(" to "))
    assert set(widths(choose_bits(plan_for(low), costs)).values()) == {2}
    assert widths(choose_bits(plan_for(high), costs))[NAMES[2]] == 8


def test_nothing_to_choose():
    with pytest.raises(SchemeError, match="nothing to choose"):
        choose_bits(plan_for(4, overrides=[{"match": "encoder.*", "scheme": "w4"}]), {})
