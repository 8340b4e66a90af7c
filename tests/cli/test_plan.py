import json

import pytest

import lowbit
from lowbit.cli.layers import split_name
from lowbit.cli.plan import grouped
from tests.models import save_tiny


def names(bert, recipe):
    return [
        ".".join(filter(None, split_name([entry.name for entry in group])))
        for group in grouped(lowbit.plan(bert, recipe).entries)
    ]


def test_equal_layers_are_one_row(bert):
    found = names(bert, "w4")
    assert found[:3] == [
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ]
    assert "encoder.layer.0-2.attention.self.query" in found
    assert len(found) == 4 + 8 + 1


def test_a_layer_that_differs_splits_its_row(bert):
    recipe = {"overrides": [{"match": "encoder.layer.1.output.dense", "scheme": "w8"}]}
    found = [name for name in names(bert, recipe) if name.endswith(".output.dense")]
    assert found == [
        "encoder.layer.0-2.attention.output.dense",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.output.dense",
        "encoder.layer.2.output.dense",
    ]


def test_equal_layers_on_both_sides_of_another_stay_apart(bert):
    found = names(bert, {"skip": ["encoder.layer.2.*.query"]})
    assert "encoder.layer.0-1.attention.self.query" in found
    assert "encoder.layer.2.attention.self.query" in found


def test_groups_hold_every_module_once(bert):
    entries = lowbit.plan(bert).entries
    assert sorted(e.name for group in grouped(entries) for e in group) == sorted(e.name for e in entries)


def test_table(run, bert):
    result = run("plan", bert)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines.count(["encoder.layer.0-2"]) == 1
    entries = [e for e in lowbit.plan(bert).entries if e.name.endswith("intermediate.dense")]
    before, after = (f"{sum(getattr(e, key) for e in entries) / 1000:.1f}" for key in ("bytes_before", "bytes_after"))
    assert ["intermediate.dense", "48x32", "linear", "w4", before, "kB", after, "kB"] in lines
    assert any(line[:3] == ["pooler.dense", "skipped:", "pooler"] for line in lines)
    assert "effective bits" in result.stdout
    assert "model bits" in result.stdout


def test_table_fits_a_terminal(run, bert):
    output = run("plan", bert, env={"COLUMNS": "80"}).stdout
    first = output.splitlines()[0]
    assert first.split() == ["module", "shape", "what", "is", "done", "before", "after"]
    names = {split_name([entry.name for entry in group])[1] for group in grouped(lowbit.plan(bert).entries)}
    assert names <= {word for line in output.splitlines() for word in line.split()}


def test_all_modules(run, bert):
    output = run("plan", bert, "--all", "--embeddings", "float", env={"COLUMNS": "160"}).stdout
    assert all(entry.name in output for entry in lowbit.plan(bert).entries)
    assert "0-2" not in output


def test_json(run, bert):
    result = run("plan", bert, "--scheme", "w3g16o1", "--embeddings", "4", "--json")
    recipe = {"scheme": "w3g16o1", "embeddings": 4}
    assert json.loads(result.stdout) == json.loads(json.dumps(lowbit.plan(bert, recipe).to_dict()))
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "int4"], "cannot read the scheme 'int4'; write w<bits>[a8|a8s][g<group>|t][o<percent>]"),
        (["--scheme", "w9"], "weight bits must be a whole number from 2 to 8, not 9"),
        (["--scheme", "w4g7"], "group size 7 does not divide the input width 32"),
        (["--recipe", "recipe.yaml"], "the recipe's pattern '*.nope' matches no quantizable module"),
    ],
)
def test_bad_recipes(run, bert, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("skip: ['*.nope']\n")
    result = run("plan", bert, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_folder_that_is_not_there(run, tmp_path):
    result = run("plan", tmp_path / "none")
    assert result.exit_code == 2
    assert "is not a model folder" in result.stderr


def test_the_generic_rule_is_named(run, tmp_path):
    source = save_tiny(tmp_path / "m", "xlnet", "XLNetModel")
    note = "model type 'xlnet' has no row in the table; generic rule"
    lines = run("plan", source).stdout.splitlines()
    assert lines[-1] == f"note: {note}"
    assert any(line.split()[:2] == ["(model)", "skipped:"] for line in lines)  # its mask embedding
    assert json.loads(run("plan", source, "--json").stdout)["notes"] == [note]
    result = run("quantize", source, "-o", tmp_path / "q")
    assert f"note: {note}" in result.stdout.splitlines()
    assert json.loads(run("quantize", source, "-o", tmp_path / "qq", "--json").stdout)["notes"] == [note]
    assert "note:" not in run("plan", save_tiny(tmp_path / "b", "bert", "BertModel")).stdout


def test_a_budget_shows_what_it_chose_and_why(run, bert):
    result = run("plan", bert, "--target-bits", "4.5", "--spread", "model", "--json")
    modules = {module["name"]: module for module in json.loads(result.stdout)["modules"]}
    recipe = {"target_bits": 4.5, "scheme": {"outliers": {"spread": "model"}}}
    assert modules == {m["name"]: m for m in json.loads(json.dumps(lowbit.plan(bert, recipe).to_dict()))["modules"]}
    output = run("plan", bert, "--target-bits", "4.5", "--spread", "model", env={"COLUMNS": "160"}).stdout
    assert output.count(": changes the output by ") == 18
    assert modules["encoder.layer.1.output.dense"]["reason"] in output


def test_a_budget_out_of_reach(run, bert):
    result = run("plan", bert, "--target-bits", "1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "1 effective bits cannot be met; this recipe reaches" in result.stderr


@pytest.mark.parametrize("option", [["--target-bits", "4"], ["--spread", "model"]])
def test_budgets_go_into_the_recipe_file(run, bert, tmp_path, option):
    (tmp_path / "r.yaml").write_text("target_bits: 4.5\n")
    result = run("plan", bert, "--recipe", tmp_path / "r.yaml", *option)
    assert result.exit_code == 2
    assert "goes into the recipe file" in result.stderr
