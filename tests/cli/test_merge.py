"""The verbs together, on a tiny model and without stand-ins."""

import json

import pytest


@pytest.fixture
def directories(run, bert, reviews, tmp_path):
    """A backbone and the adapter that was tuned on it."""
    backbone, adapter = tmp_path / "backbone", tmp_path / "adapter"
    table = ["--train", reviews, "--eval", reviews, "--text", "t", "--label", "l"]
    assert run("quantize", bert, "-o", backbone).exit_code == 0
    tuned = run("tune", backbone, "-o", adapter, *table, "--epochs", 1, "--batch-size", 8, "--json")
    return backbone, adapter, json.loads(tuned.stdout)


def test_a_merged_model_is_the_backbone_with_its_adapter(run, directories, reviews, tmp_path):
    backbone, adapter, tuned = directories
    merged = tmp_path / "merged"
    result = run("merge", backbone, adapter, "-o", merged)
    assert result.stdout.splitlines()[0] == f"{merged} written"

    rows = ["--eval", reviews, "--text", "t", "--label", "l", "--json"]
    apart = json.loads(run("evaluate", backbone, "--adapter", adapter, *rows).stdout)
    whole = json.loads(run("evaluate", merged, *rows).stdout)
    assert apart == whole
    assert whole["metrics"] == tuned["metrics"]

    texts = ["a good film", "a bad film"]
    answers = run("predict", backbone, *texts, "--adapter", adapter, "--json").stdout.splitlines()
    others = run("predict", merged, *texts, "--json").stdout.splitlines()
    for answer, other in zip(map(json.loads, answers), map(json.loads, others), strict=True):
        assert answer["label"] == other["label"] in ("no", "yes")
        # The values of the merged model set the steps of its rows, those of the backbone the other's.
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=0.01)


def test_an_output_that_exists(run, directories, tmp_path):
    backbone, adapter, _ = directories
    result = run("merge", backbone, adapter, "-o", backbone)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {backbone} exists already")
