import numpy as np
import pytest
import torch

from lowbit.bench import rounds
from lowbit.bench.inputs import Workload
from lowbit.bench.rounds import in_turn, mean_cosine, measure, summary
from tests.bench.fakes import Taker


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(rounds, "_PAUSE", 0)


def workload(mask=((1, 1),)):
    mask = torch.tensor(mask)
    return Workload("1x2", [{"input_ids": mask, "attention_mask": mask}], 6)


def run(takers, count=3, **changes):
    calls = []
    made = {name: Taker(name, calls=calls, **options) for name, options in takers.items()}
    return measure(made, 0, workload(**changes), count, "fp32"), calls


def test_every_peer_makes_one_turn_a_round_and_none_is_always_first():
    _, calls = run({"a": {"seconds": [1] * 3}, "fp32": {"seconds": [1] * 3}, "b": {"seconds": [1] * 3}})
    assert calls[:3] == [("first", "fp32"), ("first", "a"), ("first", "b")]  # the others are compared with fp32
    turns = [name for method, name in calls[3:] if method == "turn"]
    assert turns == ["a", "fp32", "b", "fp32", "b", "a", "b", "a", "fp32"]


def test_medians_quartiles_and_ratios_inside_rounds():
    # The machine is half as fast in the second round: the ratio of each round is 2.
    rows, _ = run({"fp32": {"seconds": [4, 8, 6]}, "a": {"seconds": [2, 4, 3]}})
    assert rows["a"]["seconds"] == 3
    assert rows["a"]["quartiles"] == [2.5, 3.5]
    assert rows["a"]["ratio"] == 2
    assert rows["a"]["texts_per_second"] == 2
    assert rows["a"]["rounds"] == 3
    assert rows["fp32"]["ratio"] == 1


def test_the_median_ratio_is_not_the_ratio_of_medians():
    assert summary([1, 2, 9], [1, 4, 9], 1)["ratio"] == 1


def test_a_peer_that_fails_is_listed_and_leaves_the_others_alone():
    rows, calls = run(
        {
            "fp32": {"seconds": [1] * 3},
            "late": {"seconds": [1, "out of memory"]},
            "never": {"seconds": [], "first": "no kernel"},
        }
    )
    assert rows["late"] == {"error": "out of memory"}
    assert rows["never"] == {"error": "no kernel"}
    assert rows["fp32"]["rounds"] == 3
    assert calls.count(("turn", "late")) == 2
    assert ("turn", "never") not in calls


def test_without_a_reference_there_are_times_but_no_ratios():
    rows, _ = run({"fp32": {"seconds": [], "first": "broken"}, "a": {"seconds": [1] * 3}})
    assert rows["a"]["seconds"] == 1
    assert rows["a"]["ratio"] is None
    assert rows["a"]["cosine"] is None


def test_a_peer_that_is_very_slow_makes_one_turn():
    rows, calls = run({"fp32": {"seconds": [1] * 3}, "slow": {"seconds": [50.0], "first": 60.0}})
    assert (rows["slow"]["rounds"], rows["slow"]["seconds"]) == (1, 50.0)
    assert calls.count(("turn", "slow")) == 1


def test_compiling_for_long_is_not_running_for_long():
    rows, _ = run({"fp32": {"seconds": [1] * 3}, "compiled": {"seconds": [0.5] * 3, "first": 60.0}})
    assert (rows["compiled"]["rounds"], rows["compiled"]["ratio"]) == (3, 2)


@pytest.mark.parametrize(("cores", "clean"), [(0.02, True), (0.7, False), (None, None)])
def test_foreign_load_marks_the_rows(monkeypatch, cores, clean):
    class Fixed(rounds.ForeignLoad):
        def __exit__(self, *_):
            self.cores = cores

    monkeypatch.setattr(rounds, "ForeignLoad", Fixed)
    rows, _ = run({"fp32": {"seconds": [1] * 3}})
    assert (rows["fp32"]["foreign"], rows["fp32"]["clean"]) == (cores, clean)


def test_cosine_leaves_padding_out():
    wanted = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    output = np.array([[[2.0, 0.0], [0.0, 1.0]]])
    assert mean_cosine([output], [wanted], workload()) == 0.5
    assert mean_cosine([output], [wanted], workload(mask=((1, 0),))) == 1


def test_orders_of_no_peers():
    assert in_turn([], 3) == []
