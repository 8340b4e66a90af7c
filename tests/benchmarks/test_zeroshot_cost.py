import argparse
import json
from functools import partial

import pytest
import zeroshot_cost
from rows import read_rows
from zeroshot_tables import cost_table

import lowbit
from tests.benchmarks.test_tables import body

COMMON = {"model": "a model", "device": "a processor", "precision": "fp32", "scheme": "w2a8", "batch": 2, "length": 8}
COMMON |= {"generator": None, "threads": 1}
PLAIN = {"case": "plain", "seconds": 2.0, "seconds_spread": 0.25, "time_ratio": 1.0, "peak_mib": 100.4}
PLAIN |= {"memory_ratio": 1.0}
SAM = PLAIN | {"case": "SAM", "seconds": 3.5, "time_ratio": 1.75, "memory_ratio": 1.25}


@pytest.mark.parametrize("case", zeroshot_cost.CASES)
def test_each_case_takes_its_steps(tiny, case, monkeypatch):
    made = []
    monkeypatch.setattr(zeroshot_cost.lowbit, "zeroshot", recorded(zeroshot_cost.lowbit.zeroshot, made))
    monkeypatch.setattr(zeroshot_cost.lowbit, "ZeroShotOptions", partial(lowbit.ZeroShotOptions, candidates=4))
    arguments = argparse.Namespace(scheme="w2a8", generator=tiny.model("opt"), batch=2, length=8, steps=2)
    found = zeroshot_cost.measure(zeroshot_cost.CASES[case], tiny.model("bert"), arguments)
    assert len(found["seconds"]) == 2
    (result,) = made
    assert (result.counts["descents"], result.counts["ascents"]) == (4, 4 if case in ("generator", "both") else 0)
    assert any(row["sharpness"] for row in result.record) == (case in ("SAM", "both"))


def recorded(function, made):
    def call(*arguments, **options):
        made.append(function(*arguments, **options))

    return call


def test_a_summary_stands_beside_the_plain_loop():
    found = zeroshot_cost.summary(
        "SAM", {"plain": [1.0, 2.0, 3.0], "SAM": [4.0, 3.0]}, {"plain": 2**20, "SAM": 3 * 2**19}
    )
    assert (found["seconds"], found["seconds_all"], found["time_ratio"]) == (3.5, [4.0, 3.0], 1.75)
    assert (found["peak_mib"], found["memory_ratio"]) == (1.5, 1.5)
    assert json.dumps(found)


def test_cases_take_turns_and_nothing_is_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(zeroshot_cost, "FILE", tmp_path / "zeroshot_cost.jsonl")
    asked = []

    def child(command, **_):
        asked.append(command[command.index("--child") + 1])
        return argparse.Namespace(stdout=json.dumps({"seconds": [1.0], "peak": 2**20}))

    monkeypatch.setattr(zeroshot_cost.subprocess, "run", child)
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["zeroshot_cost.py", "--threads", "1", "--rounds", "2"])
        zeroshot_cost.main()
    assert asked == 3 * ["plain", "SAM", "generator", "both"]
    rows = read_rows(tmp_path / "zeroshot_cost.jsonl")
    assert [(row["case"], row["length"], row["time_ratio"]) for row in rows] == [(case, 24, 1.0) for case in asked[:4]]


def test_the_table_has_a_line_for_each_case():
    found = body(cost_table([COMMON | row for row in (PLAIN | {"seconds": 9.0}, PLAIN, SAM)]))
    assert [line[6] for line in found] == ["plain", "SAM"]
    assert found[0][4:] == ["2 × 8", "built-in", "plain", "2.000 s", "0.250 s", "1.00×", "100 MiB", "1.00×", "1"]
    assert found[1][7:] == ["3.500 s", "0.250 s", "1.75×", "100 MiB", "1.25×", "1"]
    assert {cell for line in body(cost_table([])) for cell in line} == {"–"}
