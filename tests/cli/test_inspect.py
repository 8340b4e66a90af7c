import json

import lowbit

FOUND = {
    "kind": "backbone",
    "effective_bits": 4.25,
    "label_names": ["no", "yes"],
    "adapter": None,
    "modules": [{"name": "encoder.layer.0.output.dense", "shape": [32, 48], "bits": 4.2}],
}


def test_a_backbone(run, bert, tmp_path):
    lowbit.quantize(bert, output=tmp_path / "backbone")
    values = json.loads(run("inspect", tmp_path / "backbone", "--json").stdout)
    assert values["kind"] == "backbone"
    assert len(values["modules"]) == len(lowbit.plan(bert).quantized)


def test_a_folder_that_is_no_backbone(run, bert):
    result = run("inspect", bert)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a lowbit backbone" in result.stderr


def test_json(run, monkeypatch):
    monkeypatch.setattr(lowbit, "inspect", lambda directory: FOUND)
    assert json.loads(run("inspect", "dir", "--json").stdout) == FOUND


def test_lines_and_table(run, monkeypatch):
    monkeypatch.setattr(lowbit, "inspect", lambda directory: FOUND)
    output = run("inspect", "dir").stdout
    assert output.startswith("kind: backbone\neffective bits: 4.25\nlabel names: no, yes\n")
    assert "encoder.layer.0.output.dense" in output
    assert "32x48" in output
    assert "adapter" not in output
