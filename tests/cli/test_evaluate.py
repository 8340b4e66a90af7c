import json

import pytest

import lowbit


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


@pytest.mark.parametrize("arguments", [[], ["--eval", "x.csv", "--text", "t"], ["--task", "rte", "--label", "l"]])
def test_usage_errors(run, calls, arguments):
    assert (run("evaluate", "dir", *arguments).exit_code, calls) == (2, [])


def test_a_folder_that_is_no_adapter(run, calls, tmp_path, reviews):
    result = run("evaluate", "dir", "--adapter", tmp_path, "--eval", reviews, "--text", "t", "--label", "l")
    assert (result.exit_code, calls) == (2, [])
    assert "is not a task adapter" in result.stderr
