import pytest

from benchmarks import tables
from tests.benchmarks.test_tables import body, write

FULL = {
    "kind": "final",
    "model": "minilm",
    "task": "sst2",
    "method": "full",
    "scheme": "fp32",
    "seed": 0,
    "rows": 12000,
    "dropout": 0.0,
    "score": 0.9,
    "trained_share": 1.0,
    "rate": 5e-5,
    "date": "2026-01-01",
}
OURS = FULL | {"method": "outliers", "scheme": "w4", "trained_share": 0.0079, "rate": 1e-2}


def all_tasks(row, *scores):
    return [row | {"task": task, "score": score} for task, score in zip(("cola", "stsb", "sst2"), scores, strict=True)]


def test_scores_stand_beside_their_distance_to_full(results):
    rows = [*all_tasks(OURS, 0.39, 0.85, 0.88), *all_tasks(FULL, 0.4, 0.86, 0.9)]
    rows += [row | {"seed": 1} for row in all_tasks(OURS, 0.41, 0.85, 0.89)]
    write(results / "tuning_quality.jsonl", rows)
    lines = body(tables.TABLES["tuning"](results))
    assert lines[0] == [
        "minilm",
        "fp32",
        "full fine-tuning",
        "all",
        "40.0 (n=1)",
        "86.0 (n=1)",
        "90.0 (n=1)",
        "72.0",
        "–",
    ]
    assert lines[1] == [
        "minilm",
        "w4",
        "outliers (ours)",
        "0.79 %",
        "40.0 ± 1.4 (n=2)",
        "85.0 ± 0.0 (n=2)",
        "88.5 ± 0.7 (n=2)",
        "71.2",
        "-1.3",  # of the seed that both have: (-1 - 1 - 2) / 3
    ]


def test_a_missing_task_leaves_the_mean_open(results):
    write(results / "tuning_quality.jsonl", [FULL, OURS])
    lines = body(tables.TABLES["tuning"](results))
    assert lines[1][4:] == ["–", "–", "90.0 (n=1)", "–", "–"]
    assert body(tables.TABLES["frozen"](results)) == [["–"] * 9]


def test_small_models_have_a_table_of_their_own(results):
    small = [row | {"model": "t5-small"} for row in (FULL, OURS | {"score": 0.89})]
    write(results / "tuning_quality.jsonl", [*small, FULL])
    assert [line[0] for line in body(tables.TABLES["tuning"](results))] == ["minilm"]
    assert [line[2:] for line in body(tables.TABLES["tuning_small"](results))] == [
        ["full fine-tuning", "all", "90.0 (n=1)", "90.0", "–"],
        ["outliers (ours)", "0.79 %", "89.0 (n=1)", "89.0", "-1.0"],
    ]


def test_runs_with_dropout_do_not_stand_beside_those_without(results):
    earlier = [{name: value for name, value in row.items() if name != "dropout"} for row in (FULL, OURS)]
    write(results / "tuning_quality.jsonl", [*earlier, FULL | {"seed": 1}, FULL | {"seed": 2, "dropout": 0.1}])
    assert [line[2:7] for line in body(tables.TABLES["tuning"](results))] == [
        ["full fine-tuning", "all", "–", "–", "90.0 (n=1)"]
    ]


def test_lines_go_from_many_bits_to_few(results):
    schemes = [("w2", "ptq"), ("w4", "outliers"), ("fp32", "full"), ("w4", "ptq"), ("w3", "qat")]
    write(results / "tuning_quality.jsonl", [FULL | {"scheme": s, "method": m} for s, m in schemes])
    found = [line[1:3] for line in body(tables.TABLES["tuning"](results))]
    assert found == [
        ["fp32", "full fine-tuning"],
        ["w4", "PTQ after it"],
        ["w4", "outliers (ours)"],
        ["w3", "QAT (LSQ)"],
        ["w2", "PTQ after it"],
    ]


def test_trials_show_every_rate(results):
    trials = [
        OURS | {"kind": "trial", "rate": rate, "task": task, "score": score}
        for rate, task, score in [
            (0.01, "sst2", 0.8),
            (0.01, "stsb", 0.6),
            (0.003, "sst2", 0.7),
            (0.003, "stsb", 0.7),
            (0.03, "sst2", 0.9),
        ]
    ]
    before = [row | {"rows": 10, "score": 0.1} for row in trials]  # trials of the protocol before
    write(results / "tuning_quality.jsonl", [*before, *trials[1:], trials[0], FULL])
    assert body(tables.TABLES["trials"](results)) == [
        ["minilm", "outliers (ours)", "w4", "sst2, stsb", "0.003: 0.700", "0.01: 0.700", "0.03: –"]
    ]


def test_long_runs_show_what_was_changed(results):
    run = OURS | {
        "kind": "long",
        "precision": "bf16",
        "held_out": "sentences",
        "options": {"budget": 0.01},
        "score": 0.8,
    }
    other = run | {"options": {}, "optimizer": "another", "rows": 10, "dropout": None, "held_out_loss": 0.1234}
    write(results / "tuning_quality.jsonl", [run, other, run | {"held_out": None}])
    assert body(tables.TABLES["long"](results)) == [
        ["minilm", "sst2", "bf16", "w4", "outliers (ours)", "0.01", "budget 0.01, no dropout", "12000", "80.0", "–"],
        ["minilm", "sst2", "bf16", "w4", "outliers (ours)", "0.01", "another", "10", "80.0", "0.123"],
    ]


def test_an_option_stands_beside_the_same_runs_without_it(results):
    plain = [OURS | {"kind": "trial", "task": t, "score": score} for t, score in (("sst2", 0.8), ("stsb", 0.7))]
    other = OURS | {"kind": "trial", "task": "sst2", "rate": 0.03, "score": 0.1}
    changed = [OURS | {"kind": "option", "option": "cosine", "task": t, "score": 0.81} for t in ("sst2", "stsb")]
    alone = OURS | {"kind": "option", "option": "gptq", "task": "stsb", "score": 0.75}
    shorter = [row | {"rows": 10, "score": 0.1} for row in plain]
    write(results / "tuning_quality.jsonl", [*plain, other, *changed, alone, *shorter])
    assert body(tables.TABLES["options"](results)) == [
        ["minilm", "w4", "0.01", "cosine", "81.0", "81.0", "+6.0"],
        ["minilm", "w4", "0.01", "gptq", "–", "75.0", "–"],
    ]


def test_differences_are_of_the_same_seed_and_tasks(results):
    ptq = FULL | {"method": "ptq", "scheme": "w4"}
    rows = [*all_tasks(FULL, 0.4, 0.86, 0.9), *all_tasks(OURS, 0.39, 0.85, 0.88), ptq | {"score": 0.86}]
    rows += [OURS | {"seed": 1, "score": 0.9}, ptq | {"seed": 1, "score": 0.89}, ptq | {"seed": 2, "score": 0.1}]
    write(results / "tuning_quality.jsonl", rows)
    assert body(tables.TABLES["paired"](results)) == [
        ["minilm", "w4", "full fine-tuning", "cola, stsb, sst2", "-1.3 (n=1)"],
        ["minilm", "w4", "PTQ after it", "sst2", "1.5 ± 0.7 (n=2)"],
    ]


@pytest.mark.parametrize("name", ["paired", "options", "tuning", "frozen", "trials", "long"])
def test_no_rows_give_an_empty_table(results, name):
    assert "–" in tables.TABLES[name](results)
