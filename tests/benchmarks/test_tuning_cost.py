import argparse
import json

import pytest
import tuning_cost
from rows import read_rows
from tuning_tables import cost_table

from tests.benchmarks.test_tables import body

COMMON = {"geometry": "BERT-base", "precision": "fp32", "batch": 2, "length": 8, "device": "a processor", "threads": 1}
FULL = {
    "method": "full",
    "cache": "none",
    "dropout": "0.1",
    "seconds": 8.0,
    "seconds_spread": 0.25,
    "time_ratio": 1.0,
    "peak_mib": 3039.3,
    "memory_ratio": 1.0,
    "trained": 109483778,
}
OURS = FULL | {"method": "outliers", "dropout": "0", "seconds": 6.0, "time_ratio": 0.75, "trained": 1138130}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning_cost, "FILE", tmp_path / "tuning_cost.jsonl")
    return tmp_path / "tuning_cost.jsonl"


@pytest.mark.parametrize(
    ("method", "cache", "dropout", "precision"),
    [
        ("full", "none", "0.1", "fp32"),
        ("outliers", "none", "0", "fp32"),
        ("outliers", "fp32", "0", "fp32"),
        ("outliers", "bf16", "0", "bf16"),
        ("lora", "none", "0", "fp32"),
    ],
)
def test_each_case_takes_its_steps(tiny, method, cache, dropout, precision):
    folder = tiny.backbone("bert") if tuning_cost.METHODS[method].backbone else tiny.model("bert")
    arguments = argparse.Namespace(device="cpu", precision=precision, batch=2, length=8, steps=2)
    found = tuning_cost.measure(tuning_cost.Case(method, cache, dropout), folder, arguments)
    assert len(found["seconds"]) == 2
    assert found["trained"] > 0


def test_full_runs_again_beside_what_is_missing_and_nothing_where_nothing_is(file):
    wanted = tuning_cost.cases(COMMON)
    assert [tuple(case) for case in wanted] == [
        ("full", "none", "0.1"),
        ("full", "none", "0"),
        ("outliers", "none", "0"),
        ("outliers", "fp32", "0"),
        ("lora", "none", "0.1"),
        ("lora", "none", "0"),
    ]
    for case in wanted[:5]:
        tuning_cost.append(file, COMMON | case._asdict())
    assert [tuple(case) for case in tuning_cost.cases(COMMON)] == [wanted[0], wanted[5]]
    tuning_cost.append(file, COMMON | wanted[5]._asdict())
    assert tuning_cost.cases(COMMON) == []
    assert len(read_rows(file)) == 6


def test_a_summary_stands_beside_full_fine_tuning():
    found = tuning_cost.summary([3.0, 1.0, 2.0], {"peak": 2**20, "trained": 7}, [4.0], {"peak": 2**22, "trained": 9})
    assert (found["seconds"], found["seconds_spread"], found["time_ratio"]) == (2.0, 1.0, 0.5)
    assert (found["peak_mib"], found["memory_ratio"], found["trained"]) == (1.0, 0.25, 7)
    assert json.dumps(found)


def test_the_table_shows_the_newest_rows_full_fine_tuning_first():
    rows = (OURS | {"cache": "fp32"}, OURS | {"seconds": 1.0}, OURS, FULL | {"dropout": "0"}, FULL)
    found = body(cost_table([COMMON | row for row in rows]))
    assert [line[4:7] for line in found] == [
        ["full", "none", "0.1"],
        ["full", "none", "0"],
        ["outliers", "none", "0"],
        ["outliers", "fp32", "0"],
    ]
    assert found[2][3:] == [
        *("2 × 8", "outliers", "none", "0", "1,138,130", "6.000 s", "0.250 s", "0.75×", "3039 MiB", "1.00×", "1")
    ]
    assert {cell for line in body(cost_table([])) for cell in line} == {"–"}
