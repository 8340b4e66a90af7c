"""The verbs for language models together, on a tiny model and without stand-ins."""

import json

from tests.models import WORDS


def test_tune_evaluate_and_merge(run, tiny, tmp_path):
    text, adapter, merged = tmp_path / "a.txt", tmp_path / "adapter", tmp_path / "merged"
    text.write_text("\n".join([" ".join(WORDS)] * 6))
    backbone = tiny.backbone("opt")
    files = ["--train-text", text, "--eval-text", text]
    tuned = run("tune", backbone, "-o", adapter, *files, "--max-length", 16, "--batch-size", 4, "--epochs", 1, "--json")
    metrics = json.loads(tuned.stdout)["metrics"]["eval"]

    result = run("merge", backbone, adapter, "-o", merged)
    assert result.stdout.splitlines()[1] == f"next: lowbit evaluate {merged} --perplexity FILE"
    for model in ([backbone, "--adapter", adapter], [merged]):
        score = json.loads(run("evaluate", *model, "--perplexity", text, "--json").stdout)
        assert {name: score[name] for name in metrics} == metrics
        assert (score["tokens"], score["scored"], score["window"]) == (84, 84, 16)

    for verb in (["predict", backbone, "good"], ["evaluate", backbone, "--eval", text, "--text", "t", "--label", "l"]):
        result = run(*verb, "--adapter", adapter)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--perplexity" in result.stderr
    assert "causal-lm" in run("inspect", adapter, "--json").stdout
    assert run("verify", adapter, merged).exit_code == 0
