import json
import sys

import pytest
import zeroshot_quality
from rows import read_rows

import lowbit
from benchmarks import tables
from lowbit.data import TaskData
from tests.benchmarks.test_tables import write
from tests.tiny import options, toy_data
from tests.zeroshot.runs import RUN


@pytest.fixture
def study(tiny, tmp_path, monkeypatch):
    """Runs the study on a teacher for the toy task; gives all rows."""
    file = tmp_path / "zeroshot_quality.jsonl"
    monkeypatch.setattr(zeroshot_quality, "FILE", file)
    asked = []

    def data(task, data_dir, *, train, splits, seed) -> TaskData:
        asked.append(train)
        return toy_data(pairs=task == "stsb")

    monkeypatch.setattr(zeroshot_quality, "glue_data", data)
    teachers = tmp_path / "teachers"
    lowbit.tune(tiny.model("bert"), teachers / "sst2-full-fp32-0", toy_data(), method="full", options=options(epochs=1))

    def run(*flags):
        given = ["--teachers", teachers, "--work", tmp_path / "work", "--tasks", "sst2", "--schemes", "w2a8"]
        given += ["--options", json.dumps(RUN | {"steps": 2, "evaluate_steps": 2}), *flags]
        monkeypatch.setattr(sys, "argv", ["zeroshot_quality.py", *map(str, given)])
        zeroshot_quality.main()
        return read_rows(file)

    run.asked = asked
    return run


def test_every_missing_row_is_made_once(study, tmp_path):
    rows = study("--methods", "rtn", "random", "real")
    assert [row["method"] for row in rows] == ["rtn", "random", "real"]
    assert study.asked == [False, False, True]
    for row in rows:
        assert (row["kind"], row["metric"], row["scheme"], row["generator"]) == ("final", "accuracy", "w2a8", None)
        assert 0 <= row["score"] <= 1
        assert row["distance"] > 0
        assert row["effective_bits"] > 2
    assert len({row["teacher_score"] for row in rows}) == 1
    assert (rows[0]["gap"], rows[0]["steps"]) == (rows[0]["start_gap"], 0)
    assert len(study("--methods", "rtn", "random", "real")) == 3
    assert not list((tmp_path / "work").iterdir())


def test_a_held_out_run_is_scored_on_training_rows(study, monkeypatch):
    scored = []
    original = zeroshot_quality.on_dev

    def spy(teacher, output, data):
        scored.append(data)
        return original(teacher, output, data)

    monkeypatch.setattr(zeroshot_quality, "on_dev", spy)
    (row,) = study("--methods", "rtn", "--kind", "held-out")
    ((name, rows),) = scored[0].evaluations.items()
    train = toy_data().training_rows()
    assert (name, len(rows), study.asked) == ("held out", len(train) // 2, [True])
    assert set(rows.texts) <= set(train.texts)
    assert row["kind"] == "held-out"
    assert 0 <= row["score"] <= 1


def test_a_trial_reads_no_data(study, monkeypatch):
    monkeypatch.setattr(zeroshot_quality, "on_dev", lambda *_: pytest.fail("dev was read"))
    (row,) = study("--methods", "zsaq", "--kind", "trial", "--strategy", "minmax", "--levels", "full")
    assert "score" not in row
    assert (row["strategy"], row["levels"], row["counts"]["ascents"]) == ("minmax", "full", 2)


def test_pairs_of_sentences_stay_pairs():
    texts = zeroshot_quality.training_texts(toy_data(pairs=True))
    assert all(isinstance(text, tuple) for text in texts)
    assert all(isinstance(text, str) for text in zeroshot_quality.training_texts(toy_data()))


ROW = {
    "kind": "final",
    "model": "m",
    "task": "sst2",
    "scheme": "w2a8",
    "strategy": "mse",
    "method": "zsaq",
    "generator": "opt",
    "teacher_dropout": 0.0,
    "setting": "now",
    "precision": "fp32",
    "options": {},
    "seed": 1,
    "teacher_score": 0.9,
    "score": 0.86,
    "distance": 0.12345,
    "gap": 0.5,
}
START = ROW | {"method": "rtn", "generator": None, "score": 0.8}
TRIED = ROW | {"kind": "held-out", "options": {"rho": 0.1, "ratio": 2}}


def test_the_table_shows_finals_beside_their_teachers(results):
    """Seeds are one line, of which the mean says how much of the gap is closed; a start of another teacher is none."""
    other = START | {"teacher_dropout": 0.1, "score": 0.5}
    earlier = ROW | {"setting": "before", "score": 0.1}
    better = START | {"strategy": "gptq", "score": 0.82}
    rows = [earlier, ROW, ROW | {"seed": 2, "score": 0.85}, TRIED, START, better, other]
    write(results / "zeroshot_quality.jsonl", rows)
    assert tables.TABLES["zeroshot_quality"](results).splitlines()[2:] == [
        "| m | sst2 | w2a8 | mse | texts | zsaq | opt | – | fp32 | 90.0 | 85.5 ± 0.7 (n=2) | 44 % | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | mse | texts | rtn | – | – | fp32 | 90.0 | 80.0 (n=1) | – | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | mse | texts | rtn | – | – | fp32 | 90.0 | 50.0 (n=1) | – | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | gptq | texts | rtn | – | – | fp32 | 90.0 | 82.0 (n=1) | – | 0.123 | 0.500 |",
    ]


def test_runs_by_pairs_and_in_another_precision_have_lines_and_starts_of_their_own(results):
    in_pairs = {"setting": "now; generated inputs in pairs"}
    rows = [START, START | in_pairs | {"score": 0.86}, ROW | in_pairs | {"score": 0.88}, ROW | {"precision": "bf16"}]
    write(results / "zeroshot_quality.jsonl", rows)
    assert tables.TABLES["zeroshot_quality"](results).splitlines()[2:] == [
        "| m | sst2 | w2a8 | mse | pairs | rtn | – | – | fp32 | 90.0 | 86.0 (n=1) | – | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | mse | pairs | zsaq | opt | – | fp32 | 90.0 | 88.0 (n=1) | 50 % | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | mse | texts | zsaq | opt | – | bf16 | 90.0 | 86.0 (n=1) | – | 0.123 | 0.500 |",
        "| m | sst2 | w2a8 | mse | texts | rtn | – | – | fp32 | 90.0 | 80.0 (n=1) | – | 0.123 | 0.500 |",
    ]


def test_nothing_is_recovered_where_nothing_was_lost(results):
    write(results / "zeroshot_quality.jsonl", [ROW, START | {"score": 0.895}])
    line, _ = tables.TABLES["zeroshot_quality"](results).splitlines()[2:]
    assert line == "| m | sst2 | w2a8 | mse | texts | zsaq | opt | – | fp32 | 90.0 | 86.0 (n=1) | – | 0.123 | 0.500 |"


def test_the_table_of_differences_pairs_runs_by_seed_and_start(results):
    """With as many steps and twice as many; the mean is over the tasks with the most seeds in common."""
    ours = [ROW | {"options": {"steps": 4, "ratio": 5}, "seed": seed, "score": 0.86 + 0.01 * seed} for seed in (0, 1)]
    ours.append(ours[0] | {"task": "cola", "score": 0.7})
    theirs = [row | {"method": "random", "options": {"steps": 4}, "score": row["score"] - 0.02} for row in ours]
    theirs[1] = theirs[1] | {"score": 0.86}
    twice = theirs[0] | {"options": {"steps": 8}}
    unlike = [twice | {"precision": "bf16"}, twice | {"strategy": "gptq"}, twice | {"options": {"steps": 16}}]
    in_pairs = theirs[1] | {"method": "no-sga", "setting": "now; generated inputs in pairs"}
    write(results / "zeroshot_quality.jsonl", [*ours, *theirs, twice, *unlike, in_pairs, START])
    left = "| m | w2a8 | mse | fp32 | steps 4, ratio 5 |"
    assert tables.TABLES["zeroshot_paired"](results).splitlines()[2:] == [
        f"{left} random | steps 4 | 1.5 ± 0.7 (n=2) | 2.0 (n=1) | sst2 | 1.5 ± 0.7 (n=2) |",
        f"{left} random | steps 8 | 2.0 (n=1) | – | sst2 | 2.0 (n=1) |",
        f"{left} rtn | – | 7.0 (n=1) | – | sst2 | 7.0 (n=1) |",
    ]


def test_the_table_of_held_out_runs_says_what_was_changed(results):
    write(results / "zeroshot_quality.jsonl", [ROW, TRIED])
    assert tables.TABLES["zeroshot_held_out"](results).splitlines()[2:] == [
        "| m | sst2 | w2a8 | mse | texts | zsaq | opt | rho 0.1, ratio 2 | now | 90.0 | 86.0 | 0.1235 | 0.500 |"
    ]
