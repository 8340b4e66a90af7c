import json
import sys

import pytest

import lowbit
from benchmarks import tuning_quality as study
from tests.tiny import toy_data


def trial(task, rate, score, method="outliers", scheme="w4", model="tiny"):
    row = {
        "precision": "fp32",
        "dropout": study.DROPOUT,
        "batch": study.BATCH_SIZE,
        "kind": "trial",
        "task": task,
        "method": method,
        "scheme": scheme,
        "model": model,
    }
    return row | {"rate": rate, "score": score, "rows": study.TRIAL_ROWS[task]}


def trials(method="outliers", scheme="w4", best=1):
    rates = study.RATES[method]
    return [
        trial(task, rate, 0.9 if rate == rates[best] else 0.5, method, scheme)
        for task in study.SEARCHED
        for rate in rates
    ]


def test_the_rate_with_the_best_mean_is_taken():
    low, middle, high = study.RATES["outliers"]
    scores = {low: (0.6, 0.9), middle: (0.8, 0.8), high: (0.9, 0.1)}
    rows = [trial(t, r, s) for r, both in scores.items() for t, s in zip(study.SEARCHED, both, strict=True)]
    assert study.best_rate(rows, "tiny", "outliers", "w4") == middle


def test_three_bits_take_the_rate_that_four_bits_chose():
    rows = trials(best=0) + trials(scheme="w2", best=2)
    assert study.best_rate(rows, "tiny", "outliers", "w3") == study.RATES["outliers"][0]


def test_a_missing_trial_stops_a_final_run():
    without, first = trials()[1:], trials()[0]
    for other in ({"rows": 10}, {"model": "another"}, {"batch": 2}, {"dropout": 0.5}):
        rows = [first | other, *without]
        with pytest.raises(
            SystemExit, match=r"outliers w4: the trials at 0\.001 are incomplete; run them with --kind trial"
        ):
            study.best_rate(rows, "tiny", "outliers", "w4")


def test_every_method_has_three_rates():
    assert {len(rates) for rates in study.RATES.values()} == {3}
    assert {name.removesuffix("-kd") for name in study.RATES} | {"ptq"} == set(lowbit.tuning.METHODS)


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Runs the study on the tiny BERT, with the toy rows for every task, and gives its rows."""
    file = tmp_path / "rows.jsonl"
    monkeypatch.setattr(study, "FILE", file)
    monkeypatch.setattr(study, "task_data", lambda *_: toy_data())
    monkeypatch.setattr(study, "held_out_data", lambda *_: toy_data())
    monkeypatch.setattr(study, "EPOCHS", dict.fromkeys(study.EPOCHS, 1))
    monkeypatch.setattr(study, "TRIAL_ROWS", dict.fromkeys(study.TRIAL_ROWS, len(toy_data().train)))
    made = []
    tune = lowbit.tune

    def spy(*arguments, **settings):
        made.append((settings["method"], settings["options"]))
        return tune(*arguments, **settings)

    monkeypatch.setattr(lowbit, "tune", spy)

    def call(*arguments):
        command = ["study", "--model", str(tiny.model("bert")), "--name", "tiny", "--rates-of", "tiny"]
        command += ["--budget", "0.1"]  # of a tiny model, norms alone are 2 %
        monkeypatch.setattr(sys, "argv", [*command, "--work", str(tmp_path / "work"), *arguments])
        study.main()
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    call.made, call.file, call.work = made, file, tmp_path / "work" / "tiny" / "all"
    return call


def test_trials_lead_to_final_runs_and_none_is_made_twice(run):
    arguments = ["--tasks", "sst2", "--methods", "full", "ptq", "outliers", "--schemes", "w2"]
    rows = run(*arguments)
    assert [(row["kind"], row["method"]) for row in rows] == [
        *[("trial", "full")] * 6,
        ("final", "full"),
        ("final", "ptq"),
        *[("trial", "outliers")] * 6,
        ("final", "outliers"),
    ]
    best = {method: study.best_rate(rows, "tiny", method, "w2") for method in ("full", "outliers")}
    assert [row["rate"] for row in rows if row["kind"] == "final"] == [best["full"], best["full"], best["outliers"]]
    assert [options.learning_rate for _, options in run.made] == [r["rate"] for r in rows if r["method"] != "ptq"]
    assert [path.name for path in run.work.iterdir() if "final" in path.name or path.name == "trial"] == []
    assert (run.work / "sst2-full-fp32-0").is_dir()
    assert run(*arguments) == rows


def test_a_teacher_is_the_fully_tuned_model_of_the_same_seed(run):
    rows = trials("full", "fp32") + trials("qat-kd", "w2")
    run.file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = run("--kind", "final", "--tasks", "sst2", "--methods", "qat-kd", "--schemes", "w2")
    assert [row["method"] for row in rows[-2:]] == ["full", "qat-kd"]
    (_, of_full), (method, of_student) = run.made
    assert (method, of_full.teacher) == ("qat", None)
    assert of_student.teacher == run.work / "sst2-full-fp32-0"


def test_options_are_tried_one_at_a_time(run):
    chosen = ["cosine", "positions: Gaussian tail"]
    run.file.write_text("".join(json.dumps(row) + "\n" for row in trials(scheme="w2")), encoding="utf-8")
    rows = run("--kind", "option", "--methods", "outliers", "--schemes", "w2", "--options", *chosen)[6:]
    assert [(row["option"], row["task"]) for row in rows] == [(name, t) for name in chosen for t in study.SEARCHED]
    assert {row["rate"] for row in rows} == {study.RATES["outliers"][1]}
    assert [options.schedule for _, options in run.made] == ["cosine", "cosine", "linear", "linear"]
    folders = {path.name for path in run.work.iterdir()}
    assert {"backbone-w2", "backbone-w2-tail"} <= folders
