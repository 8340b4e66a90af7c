import json

import pytest

import lowbit
from tests.models import file_bytes


def test_json_and_files_are_those_of_the_function(run, bert, tmp_path):
    result = run("quantize", bert, "-o", tmp_path / "cli", "--scheme", "w3", "--strategy", "minmax", "--json")
    recipe = {"scheme": {"bits": 3, "strategy": "minmax"}}
    expected = lowbit.quantize(bert, recipe, output=tmp_path / "function")
    values = json.loads(result.stdout)
    assert values.pop("seconds") > 0
    assert values == {
        "path": str(tmp_path / "cli"),
        "bytes_before": expected.plan.bytes_before,
        **vars(expected.size),
        "notes": [],
    }
    assert file_bytes(tmp_path / "cli") == file_bytes(tmp_path / "function")
    assert result.stderr == ""


def test_static_activations(run, bert, tmp_path):
    assert run("quantize", bert, "-o", tmp_path / "out", "--scheme", "w8a8s", "--embeddings", "4").exit_code == 0
    shown = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert {row["scheme"] for row in shown["modules"] if row["kind"] == "linear"} == {"w8a8s"}


def test_the_seed_is_passed_on(run, bert, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"scheme": {"outliers": {"rule": "random"}}}))
    for seed in (0, 1):
        run("quantize", bert, "-o", tmp_path / str(seed), "--recipe", recipe, "--seed", seed)
    assert lowbit.verify(tmp_path / "0").fingerprint != lowbit.verify(tmp_path / "1").fingerprint


def test_the_end_says_size_bits_and_what_comes_next(run, bert, tmp_path):
    lines = run("quantize", bert, "-o", tmp_path / "out").stdout.splitlines()
    assert lines[0].endswith("times smaller")
    assert lines[1].startswith("effective bits ")
    assert "model bits " in lines[1]
    assert lines[2].startswith(f"{tmp_path / 'out'} written in ")
    assert lines[3] == f"next: lowbit tune {tmp_path / 'out'} -o ADAPTER --task sst2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "there"], "there exists already"),
        (["-o", "new", "--strategy", "nope"], "unknown strategy 'nope'; use one of"),
    ],
)
def test_errors_leave_nothing_behind(run, bert, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    result = run("quantize", bert, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_recipe_and_scheme_together_are_a_usage_error(run, bert, tmp_path):
    result = run("quantize", bert, "-o", tmp_path / "out", "--recipe", "r.yaml", "--scheme", "w4")
    assert result.exit_code == 2
    assert "--scheme" in result.stderr


def test_a_budget(run, bert, tmp_path):
    run("quantize", bert, "-o", tmp_path / "q", "--target-bits", "4.5", "--spread", "model")
    recipe = {"target_bits": 4.5, "scheme": {"outliers": {"spread": "model"}}}
    lowbit.quantize(bert, recipe, output=tmp_path / "same")
    assert file_bytes(tmp_path / "q") == file_bytes(tmp_path / "same")


def test_a_spread_needs_outliers(run, bert, tmp_path):
    result = run("quantize", bert, "-o", tmp_path / "q", "--scheme", "w4o0", "--spread", "model")
    assert result.exit_code == 2
    assert "--spread needs a scheme with outliers" in result.stderr


def test_calibration_text_is_read_line_by_line(run, tiny, tmp_path):
    (tmp_path / "text.txt").write_text("good film\n\nthe book was awful\n")
    options = ["--scheme", "w2", "--strategy", "gptq"]
    run("quantize", tiny.model("bert"), "-o", tmp_path / "cli", *options, "--calibration", tmp_path / "text.txt")
    recipe = {"scheme": {"bits": 2, "strategy": "gptq"}}
    texts = ["good film", "the book was awful"]
    lowbit.quantize(tiny.model("bert"), recipe, output=tmp_path / "function", texts=texts)
    assert file_bytes(tmp_path / "cli") == file_bytes(tmp_path / "function")
