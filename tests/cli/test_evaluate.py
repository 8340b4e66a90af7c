import inspect
import json
from pathlib import Path

import pytest

import lowbit
from lowbit.evaluation import perplexity
from lowbit.scoring import TextScore


@pytest.fixture
def calls(monkeypatch):
    found = []

    def evaluate(model, data, *, adapter=None, batch_size=32, max_length=None, progress=None):
        found.append((model, data, adapter, batch_size, max_length))
        return {split: {"pearson": float("nan"), "spearman": 0.5} for split in data.evaluations}

    monkeypatch.setattr(lowbit, "evaluate", evaluate)
    return found


@pytest.fixture
def glue(tmp_path):
    folder = tmp_path / "glue" / "MNLI"
    folder.mkdir(parents=True)
    for split in ("dev_matched", "dev_mismatched"):
        (folder / f"{split}.tsv").write_text("sentence1\tsentence2\tgold_label\na\tb\tneutral\n")
    return tmp_path


def test_a_glue_task_without_training_rows(run, calls, glue):
    result = run(
        "evaluate", "dir", "--task", "mnli", "--data-dir", glue, "--batch-size", 4, "--max-length", 9, "--json"
    )
    scores = {"pearson": None, "spearman": 0.5}
    assert json.loads(result.stdout) == {
        "task": "mnli",
        "primary": "accuracy",
        "metrics": {"dev_matched": scores, "dev_mismatched": scores},
    }
    ((model, data, adapter, batch_size, max_length),) = calls
    assert (model, data.train, adapter, batch_size, max_length) == ("dir", None, None, 4, 9)


def test_table(run, calls, glue):
    output = run("evaluate", "dir", "--task", "mnli", "--data-dir", glue).stdout
    assert "dev_mismatched" in output
    assert "0.5" in output


@pytest.fixture
def text_calls(monkeypatch):
    found = []

    def perplexity(model, text, **settings):
        settings.pop("progress")(1, 2, "tokens")
        found.append((model, text, settings))
        return TextScore("causal", 256, 128, 1000, 1000, 23.456, 1.25, float("inf"))

    monkeypatch.setattr(lowbit, "perplexity", perplexity)
    return found


def test_perplexity_defaults_are_those_of_the_function(run, text_calls):
    output = run("evaluate", "dir", "--perplexity", "a.txt").stdout
    assert "23.46" in output
    assert "bits per byte" in output
    ((model, text, settings),) = text_calls
    assert (model, text) == ("dir", Path("a.txt"))
    defaults = {name: p.default for name, p in inspect.signature(perplexity).parameters.items() if name in settings}
    assert settings == defaults
    assert len(defaults) == 6


def test_perplexity_options_are_passed_on(run, text_calls):
    flags = "--adapter ad --window 64 --stride 16 --batch-size 2 --sample 100 --seed 5 --json"
    result = run("evaluate", "dir", "--perplexity", "a.txt", *flags.split())
    assert json.loads(result.stdout) == {
        "kind": "causal",
        "window": 256,
        "stride": 128,
        "tokens": 1000,
        "scored": 1000,
        "perplexity": 23.456,
        "bits_per_byte": 1.25,
        "word_perplexity": None,
    }
    ((_, _, settings),) = text_calls
    assert settings == {
        "adapter": "ad",
        "window": 64,
        "stride": 16,
        "batch_size": 2,
        "sample": 100,
        "seed": 5,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--perplexity", "a.txt", "--task", "rte"], "--task is for rows with labels"),
        (["--perplexity", "a.txt", "--text-pair", "t"], "--text-pair is for rows with labels"),
        (["--perplexity", "a.txt", "--max-length", "9"], "--max-length is for rows with labels"),
        (["--task", "rte", "--window", "9"], "--window is for --perplexity"),
        (["--task", "rte", "--sample", "9"], "--sample is for --perplexity"),
    ],
)
def test_labels_and_plain_text_are_not_mixed(run, calls, text_calls, arguments, message):
    result = run("evaluate", "dir", *arguments, env={"COLUMNS": "160"})
    assert (result.exit_code, calls, text_calls) == (2, [], [])
    assert message in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--eval", "x.csv", "--text", "t"], ["--task", "rte", "--label", "l"]])
def test_usage_errors(run, calls, arguments):
    assert (run("evaluate", "dir", *arguments).exit_code, calls) == (2, [])


def test_a_folder_that_is_no_adapter(run, calls, tmp_path, reviews):
    result = run("evaluate", "dir", "--adapter", tmp_path, "--eval", reviews, "--text", "t", "--label", "l")
    assert (result.exit_code, calls) == (2, [])
    assert "is not a task adapter" in result.stderr
