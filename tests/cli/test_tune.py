import json
from pathlib import Path

import pytest

import lowbit
from lowbit import TuneOptions
from lowbit.data import text_data
from lowbit.recipe import Recipe
from lowbit.tuning import METHODS, TuneResult


@pytest.fixture
def calls(monkeypatch):
    found = []

    def tune(model, output, data, *, method="outliers", options, progress=None):
        found.append((model, output, data, method, options))
        progress(1, 2, "step")
        scores = {"eval": {"accuracy": 0.75}}
        trained = {"outliers": 5, "head": 2}
        return TuneResult(Path(output), method, data.name, "accuracy", 0.75, scores, trained, 0.0125, 1.5, 16, 3)

    monkeypatch.setattr(lowbit, "tune", tune)
    return found


@pytest.fixture
def table(reviews):
    return ["--train", reviews, "--eval", reviews, "--text", "t", "--label", "l"]


def test_defaults_are_those_of_the_function(run, calls, table):
    assert run("tune", "backbone", "-o", "out", *table).exit_code == 0
    ((model, output, data, method, options),) = calls
    assert (model, output, method, options) == ("backbone", Path("out"), "outliers", TuneOptions())
    assert data.label_names == ("no", "yes")


def test_every_option_is_passed_on(run, calls, table):
    flags = "--method ptq --scheme w3 --epochs 0.5 --batch-size 4 --learning-rate 0.1 --head-learning-rate 0.2"
    flags += " --max-length 7 --train-rows 6 --no-norms --no-biases --no-scales --precision fp32 --seed 9"
    flags += " --accumulate 2 --hold-out 0.25 --patience 3 --save-steps 20 --budget 0.5% --positions gradient"
    flags += " --initial decoded --rate-by-step --rank 3 --teacher there --float-model here --warmup 0.2"
    flags += " --schedule cosine --dropout 0.3 --cache fp32 --checkpointing"
    assert run("tune", "model", "-o", "out", *table, *flags.split()).exit_code == 0
    ((_, _, data, method, options),) = calls
    assert (method, len(data.train)) == ("ptq", 6)
    assert options == TuneOptions(
        epochs=0.5,
        batch_size=4,
        learning_rate=0.1,
        head_learning_rate=0.2,
        max_length=7,
        norms=False,
        biases=False,
        scales=False,
        precision="fp32",
        seed=9,
        accumulate=2,
        hold_out=0.25,
        patience=3,
        budget=0.005,
        positions="gradient",
        initial="decoded",
        rate_by_step=True,
        rank=3,
        teacher=Path("there"),
        float_model=Path("here"),
        warmup=0.2,
        schedule="cosine",
        dropout=0.3,
        cache="fp32",
        checkpointing=True,
        save_steps=20,
        recipe=Recipe.parse("w3"),
    )


def test_json(run, calls, table):
    values = json.loads(run("tune", "backbone", "-o", "out", *table, "--json").stdout)
    assert (values["path"], values["metrics"]) == ("out", {"eval": {"accuracy": 0.75}})


@pytest.mark.parametrize(("method", "use"), [("outliers", "backbone --adapter out"), ("full", "out")])
def test_the_end_says_scores_and_what_comes_next(run, calls, table, method, use):
    output = run("tune", "backbone", "-o", "out", *table, "--method", method).stdout
    assert "0.75" in output
    assert "trained: outliers 5, head 2; without the head 1.25 % of the block weights" in output
    assert "out written in 1.5 s, 16 training rows, 3 steps" in output
    assert f'next: lowbit predict {use} "some text"' in output


def test_only_the_first_process_prints(run, calls, table, monkeypatch):
    monkeypatch.setattr(lowbit.tuning, "is_first", lambda: False)
    result = run("tune", "backbone", "-o", "out", *table)
    assert (result.exit_code, len(calls), result.output) == (0, 1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "w4"], "--scheme is for --method ptq"),
        (["--task", "sst2"], "--train is for your own files"),
        (["--method", "magic"], "magic"),
    ],
)
def test_usage_errors(run, calls, table, arguments, message):
    result = run("tune", "backbone", "-o", "out", *table, *arguments, env={"COLUMNS": "160"})
    assert (result.exit_code, calls) == (2, [])
    assert message in result.stderr


def test_bad_values_are_errors(run, calls, table, tmp_path):
    assert "must be positive" in run("tune", "b", "-o", "o", *table, "--epochs", "0").stderr
    result = run("tune", "b", "-o", "o", "--task", "sst2", "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: sst2: no train file")


def test_plain_text(run, calls):
    output = run("tune", "backbone", "-o", "out", "--train-text", "a.txt", "--eval-text", "b.txt").stdout
    ((_, _, data, method, options),) = calls
    assert data == text_data("a.txt", "b.txt")
    assert (method, options) == ("outliers", TuneOptions())
    assert "next: lowbit evaluate backbone --adapter out --perplexity FILE" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-text", "a", "--task", "sst2"], "--task is for rows with labels; leave it or --train-text out"),
        (["--train-text", "a", "--train", "b.csv"], "--train is for rows with labels"),
        (["--train-text", "a", "--label", "l"], "--label is for rows with labels"),
        (["--train-text", "a", "--train-rows", "5"], "--train-rows is for rows with labels"),
        (["--train-text", "a", "--regression"], "--regression is for rows with labels"),
        (["--eval-text", "a", "--task", "sst2"], "--eval-text needs --train-text"),
    ],
)
def test_rows_and_plain_text_are_not_mixed(run, calls, arguments, message):
    result = run("tune", "backbone", "-o", "out", *arguments, env={"COLUMNS": "160"})
    assert (result.exit_code, calls) == (2, [])
    assert message in result.stderr


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.02", 0.02), ("100%", 1.0)])
def test_a_budget_is_a_share_or_in_percent(run, calls, table, text, share):
    assert run("tune", "backbone", "-o", "out", *table, "--budget", text).exit_code == 0
    assert calls[0][4].budget == pytest.approx(share)


@pytest.mark.parametrize(("text", "message"), [("much", "as 0.5% or 0.005"), ("0", "above 0"), ("150%", "up to 1")])
def test_other_budgets_are_refused(run, calls, table, text, message):
    result = run("tune", "backbone", "-o", "out", *table, "--budget", text)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert calls == []


def test_every_method_can_be_chosen(run, calls, table):
    for method in METHODS:
        assert run("tune", "model", "-o", "out", *table, "--method", method).exit_code == 0
    assert [call[3] for call in calls] == list(METHODS)
