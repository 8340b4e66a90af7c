import json
import shutil

import pytest

import lowbit
from tests.models import edit_json

WIDE = {"COLUMNS": "160"}  # whatever the terminal that the tests run in


@pytest.fixture(scope="session")
def backbone(bert, tmp_path_factory):
    return lowbit.quantize(bert, "w4o1", output=tmp_path_factory.mktemp("inspect") / "backbone").path


@pytest.fixture
def adapter(run, backbone, reviews, tmp_path):
    table = ["--train", reviews, "--eval", reviews, "--text", "t", "--label", "l"]
    assert run("tune", backbone, "-o", tmp_path / "adapter", *table, "--batch-size", 4).exit_code == 0
    return tmp_path / "adapter"


def lines_of(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return [line.split() for line in result.stdout.splitlines()]


def test_json_is_that_of_the_function(run, bert, backbone):
    result = run("inspect", backbone, bert, "--json")
    assert json.loads(result.stdout) == json.loads(json.dumps(lowbit.inspect(backbone, bert)))
    assert result.stderr == ""


def test_equal_layers_share_a_row(run, bert, backbone):
    found = lowbit.inspect(backbone, bert)
    lines = lines_of(run("inspect", backbone, bert, env=WIDE))
    assert lines.count(["encoder.layer.0-2"]) == 1
    rows = [row for row in found["modules"] if row["name"].endswith("intermediate.dense")]
    (line,) = [line for line in lines if line and line[0] == "intermediate.dense"]
    step = f"{min(r['scale_min'] for r in rows):.2g}-{max(r['scale_max'] for r in rows):.2g}"
    assert line[1:5] == ["48x32", "w4o1", f"{rows[0]['bits']:.4g}", step]
    assert line[-1] == f"{max(row['error'] for row in rows):.4g}"
    assert f"{max(row['outlier_reach'] for row in rows):.4g}" in line
    worst = max(found["modules"], key=lambda row: row["error"])
    summary = f"error {found['error']:.4g} (block linears), largest {worst['error']:.4g}: {worst['name']}"
    assert " ".join(lines[-1]) == summary
    assert ["18", "linears", "and", "1", "embeddings,", f"{found['outliers']:,}", "outliers"] in lines


def test_a_layer_that_differs_stands_in_its_place(run, bert, tmp_path):
    recipe = {"overrides": [{"match": "encoder.layer.1.output.dense", "scheme": "w8"}]}
    lowbit.quantize(bert, recipe, output=tmp_path / "mixed")
    names = [line[0] for line in lines_of(run("inspect", tmp_path / "mixed", env=WIDE)) if line]
    start = names.index("encoder.layer.0")
    assert names[start : start + 6] == [
        "encoder.layer.0",
        "output.dense",
        "encoder.layer.1",
        "output.dense",
        "encoder.layer.2",
        "output.dense",
    ]


def test_all_modules(run, backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "copy")
    edit_json(folder / "config.json", lambda values: values["quantization_config"].pop("errors", None))
    output = run("inspect", folder, "--all", env={"COLUMNS": "200"}).stdout
    assert all(row["name"] in output for row in lowbit.inspect(backbone)["modules"])
    assert "0-2" not in output
    assert "error: not recorded; `lowbit inspect DIR FLOAT-MODEL` measures it" in output


def test_a_table_fits_a_terminal(run, backbone):
    output = run("inspect", backbone, env={"COLUMNS": "80"}).stdout
    assert max(map(len, output.splitlines())) <= 80 or "fingerprint" in max(output.splitlines(), key=len)
    assert "attention.output.dense" in output


def test_two_backbones(run, bert, backbone, tmp_path):
    lowbit.quantize(bert, {"scheme": "w4", "skip": ["*.2.output.dense"]}, output=tmp_path / "other")
    lines = lines_of(run("inspect", backbone, tmp_path / "other"))
    found = lowbit.inspect(backbone, tmp_path / "other")
    sizes = [f"{found[side]['effective_bits']:.4g}" for side in ("left", "right")]
    assert ["effective", "bits", *sizes] in lines
    assert [line[1:4] for line in lines if line[:1] == ["attention.self.query"]] == [["32x32", "w4o1", "w4"]]
    assert ["w4o1", "float"] in [line[2:4] for line in lines if line[:1] == ["output.dense"]]
    assert lines[-1] == ["difference", f"{found['difference']:.4g}", "(block", "linears)"]
    assert lines_of(run("inspect", backbone, backbone))[-1] == ["equal"]


def test_adapters(run, backbone, adapter):
    alone = run("inspect", adapter, "--backbone", backbone).stdout
    assert alone.startswith("kind: adapter\n")
    assert "scores: eval accuracy" in alone
    assert "label names: no, yes" in alone
    found = {row["name"]: row for row in lowbit.inspect(adapter, backbone=backbone)["tensors"]}
    moved = max(row["moved"] for name, row in found.items() if name.endswith("self.query.outlier_value"))
    assert f"{moved:.4g}" in alone
    assert "encoder.layer.0-2" in alone
    pair = lines_of(run("inspect", adapter, adapter))
    assert pair[-1] == ["equal"]
    assert ["classifier.weight", "2x32", "yes", "0"] in pair


def test_what_differs_between_adapters_is_counted(run, backbone, adapter, tmp_path, reviews):
    table = ["--train", reviews, "--eval", reviews, "--text", "t", "--label", "l", "--batch-size", 4, "--no-norms"]
    assert run("tune", backbone, "-o", tmp_path / "other", *table, "--seed", 1).exit_code == 0
    output = run("inspect", adapter, tmp_path / "other").stdout
    found = lowbit.inspect(adapter, tmp_path / "other")
    assert output.splitlines()[-1] == f"{len(found['tensors'])} of {len(found['tensors'])} common tensors differ"
    assert "tensors left: embeddings.LayerNorm.bias, " in output
    assert "tensors right" not in output


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_errors_are_one_line(run, bert, backbone, tmp_path, flags):
    result = run("inspect", bert, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a lowbit backbone" in result.stderr
    config = tmp_path / "odd"
    config.mkdir()
    (config / "config.json").write_text((bert / "config.json").read_text())
    edit_json(config / "config.json", lambda values: values.update(model_type="gpt2"))
    result = run("inspect", backbone, config, *flags)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "compare two of one model" in result.stderr
