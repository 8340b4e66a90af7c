"""A backbone beside its float model, and beside another backbone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit.errors import AdapterError, CheckpointError
from lowbit.nn import QuantModule
from tests.models import LANGUAGE_MODELS, edit_json, save_tiny, tiny_model
from tests.tiny import BACKBONES


def float_weights(arch, class_name, **changes):
    """The float weights [out, in] of the modules that are quantized, by relative name."""
    model = tiny_model(arch, class_name, **changes)
    prefix = f"{model.base_model_prefix}."
    kinds = {entry.name: entry.kind for entry in lowbit.plan(model, "w4").quantized}
    weights = {name.removeprefix(prefix): module for name, module in model.named_modules()}
    return {
        name: weights[name].weight.detach().t() if kind == "conv1d" else weights[name].weight.detach()
        for name, kind in kinds.items()
    }


def relative(left, right):
    return float((left.double() - right.double()).norm() / right.double().norm())


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_errors_are_those_of_the_weights(tmp_path, arch, class_name):
    source = save_tiny(tmp_path / "float", arch, class_name)
    path = lowbit.quantize(source, "w3o2", output=tmp_path / "backbone").path
    found = lowbit.inspect(path, source)
    model, floats = lowbit.load(path), float_weights(arch, class_name)
    prefix = f"{model.base_model_prefix}."
    modules = {n.removeprefix(prefix): m for n, m in model.named_modules() if isinstance(m, QuantModule)}
    assert sorted(row["name"] for row in found["modules"]) == sorted(floats)
    for row in found["modules"]:
        assert row["error"] == pytest.approx(relative(modules[row["name"]].weight, floats[row["name"]]), rel=1e-5)
    linears = [row["name"] for row in found["modules"] if row["kind"] != "embedding"]
    total = [
        torch.cat([w[n].reshape(-1) for n in linears]) for w in ({n: m.weight for n, m in modules.items()}, floats)
    ]
    assert found["error"] == pytest.approx(relative(*total), rel=1e-5)


def test_without_the_float_model_errors_are_what_was_recorded(tiny, tmp_path):
    folder = shutil.copytree(tiny.backbone("bert"), tmp_path / "copy")
    edit_json(folder / "config.json", lambda values: values["quantization_config"].pop("errors", None))
    before = lowbit.inspect(folder)
    assert before["error"] is None
    assert {row["error"] for row in before["modules"]} == {None}
    measured = lowbit.inspect(folder, tiny.model("bert"))
    errors = {row["name"]: row["error"] for row in measured["modules"]}
    edit_json(folder / "config.json", lambda values: values["quantization_config"].update(errors=errors))
    after = lowbit.inspect(folder)
    assert {row["name"]: row["error"] for row in after["modules"]} == errors
    assert after["error"] == pytest.approx(measured["error"], rel=0.01)
    for broken in ([1.0], {"pooler": "x"}):
        edit_json(folder / "config.json", lambda values, bad=broken: values["quantization_config"].update(errors=bad))
        with pytest.raises(CheckpointError, match=r"`errors` in config.json are damaged"):
            lowbit.inspect(folder)


def test_a_task_class_is_measured_against_the_base_model(tiny, tmp_path):
    classifier = tiny.backbone("bert", "BertForSequenceClassification")
    source = tiny.model("bert", "BertForSequenceClassification")
    rows = lowbit.inspect(classifier, source)["modules"]
    lowbit.load(source).bert.save_pretrained(tmp_path / "base")
    assert lowbit.inspect(classifier, tmp_path / "base")["modules"] == rows


def test_progress_names_every_module(tiny):
    seen = []
    rows = lowbit.inspect(tiny.backbone("bert"), progress=lambda *report: seen.append(report))["modules"]
    assert seen == [(index, len(rows), row["name"]) for index, row in enumerate(rows)]


def test_a_float_model_of_another_kind_is_refused(tiny, tmp_path):
    backbone = tiny.backbone("bert")
    with pytest.raises(CheckpointError, match=r"is a bert model and .* a gpt2; compare two of one model"):
        lowbit.inspect(backbone, tiny.model("gpt2"))
    short = save_tiny(tmp_path / "short", "bert", "BertModel", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"has no module 'encoder.layer.1.* of shape \[32, 32\]; give the float"):
        lowbit.inspect(backbone, short)
    wide = save_tiny(tmp_path / "wide", "bert", "BertModel", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"no module 'encoder.layer.0.intermediate.dense' of shape \[48, 32\]"):
        lowbit.inspect(backbone, wide)


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_backbone_equals_itself(tiny, arch):
    found = lowbit.inspect(tiny.backbone(arch), tiny.backbone(arch))
    assert (found["kind"], found["equal"], found["difference"]) == ("backbones", True, 0)
    assert {(row["codes_changed"], row["difference"]) for row in found["modules"]} == {(0, 0)}
    assert found["tensors_changed"] == found["tensors_left"] == found["tensors_right"] == []


def test_two_recipes_side_by_side(tiny):
    recipe = {"scheme": "w3", "skip": ["*.0.output.dense"], "embeddings": "float"}
    left, right = tiny.backbone("gpt2"), tiny.backbone("gpt2", recipe="w3")
    found = lowbit.inspect(left, right)
    assert not found["equal"]
    assert found["left"]["effective_bits"] == lowbit.inspect(left)["effective_bits"]
    assert found["right"]["fingerprint"] == lowbit.verify(right).fingerprint
    pairs = {row["name"]: row for row in found["modules"]}
    assert pairs["wte"]["difference"] == 0
    linear = pairs["h.0.mlp.c_fc"]
    assert (linear["scheme"], linear["codes_changed"], linear["outliers"]) == (["w4o2", "w3"], None, [82, 20])
    assert linear["bits"] == [
        next(row["bits"] for row in lowbit.inspect(side)["modules"] if row["name"] == "h.0.mlp.c_fc")
        for side in (left, right)
    ]
    left_weight, right_weight = (lowbit.load(side).transformer.h[0].mlp.c_fc.weight for side in (left, right))
    assert linear["difference"] == pytest.approx(relative(left_weight, right_weight), rel=1e-5)

    mixed = tiny.backbone("bert", recipe=recipe)
    rows = {row["name"]: row for row in lowbit.inspect(tiny.backbone("bert"), mixed)["modules"]}
    errors = {row["name"]: row for row in lowbit.inspect(tiny.backbone("bert"), tiny.model("bert"))["modules"]}
    for name in ("encoder.layer.0.output.dense", "embeddings.word_embeddings"):
        assert rows[name]["scheme"][1] is rows[name]["bits"][1] is rows[name]["outliers"][1] is None
        assert rows[name]["difference"] == errors[name]["error"]
    swapped = {row["name"]: row for row in lowbit.inspect(mixed, tiny.backbone("bert"))["modules"]}
    assert swapped.keys() == rows.keys()
    assert swapped["encoder.layer.0.output.dense"]["scheme"][0] is None


def test_a_conv1d_that_is_float_on_one_side(tiny):
    left, right = tiny.backbone("gpt2"), tiny.backbone("gpt2", recipe={"scheme": "w4", "skip": ["h.0.attn.c_attn"]})
    row = next(row for row in lowbit.inspect(left, right)["modules"] if row["name"] == "h.0.attn.c_attn")
    errors = {row["name"]: row["error"] for row in lowbit.inspect(left, tiny.model("gpt2"))["modules"]}
    assert row["shape"] == [96, 32]
    assert row["difference"] == errors["h.0.attn.c_attn"]


def test_a_changed_code_and_a_changed_head(tiny, tmp_path):
    backbone, merged = tiny.backbone("bert"), tiny.merged("bert")
    found = lowbit.inspect(merged, backbone)
    assert (found["left"]["kind"], found["right"]["kind"]) == ("merged", "backbone")
    assert {row["codes_changed"] for row in found["modules"]} == {0}  # tuning leaves codes alone
    assert any(row["difference"] > 0 for row in found["modules"])
    assert found["tensors_left"] == ["classifier.bias", "classifier.weight"]
    assert "encoder.layer.0.output.dense.bias" in found["tensors_changed"]
    assert "pooler.dense.weight" in found["tensors_changed"]
    assert "embeddings.position_embeddings.weight" not in found["tensors_changed"]
    other = lowbit.inspect(backbone, tiny.backbone("bert", seed=1))
    assert all(0.5 < row["codes_changed"] <= 1 for row in other["modules"])
    assert other["tensors_left"] == other["tensors_right"] == []


def test_shards_and_a_prefix_change_nothing(tiny, tmp_path):
    backbone = tiny.backbone("bert")
    lowbit.load(backbone).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert lowbit.inspect(tmp_path / "shards", backbone)["equal"]
    expected = lowbit.inspect(backbone, tiny.model("bert"))["modules"]
    assert lowbit.inspect(tmp_path / "shards", tiny.model("bert"))["modules"] == expected


def test_backbones_of_two_models_are_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a bert model and .* a t5; compare two of one model"):
        lowbit.inspect(tiny.backbone("bert"), tiny.backbone("t5"))
    for changes, message in (
        ({"num_hidden_layers": 1}, "has no module 'encoder.layer.1.attention.self.query'; compare two backbones"),
        ({"intermediate_size": 64}, r"dense is \[48, 32\] in .* and \[64, 32\] in .*; compare two backbones of one"),
    ):
        source = save_tiny(tmp_path / str(changes), "bert", "BertModel", **changes)
        other = lowbit.quantize(source, "w4", output=tmp_path / f"{changes} backbone").path
        with pytest.raises(CheckpointError, match=message):
            lowbit.inspect(tiny.backbone("bert"), other)


@pytest.mark.parametrize("second", [False, True])
def test_damage_is_found_before_anything_is_said(tiny, tmp_path, second):
    folder = shutil.copytree(tiny.backbone("bert"), tmp_path / "copy")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"copy/model.safetensors: tensor '\S+' does not match its checksum"):
        lowbit.inspect(tiny.backbone("bert"), folder) if second else lowbit.inspect(folder)


def test_what_cannot_be_compared_is_named(tiny):
    with pytest.raises(CheckpointError, match="is a task adapter; put it first, with `backbone`"):
        lowbit.inspect(tiny.backbone("bert"), tiny.adapter("bert"))
    with pytest.raises(AdapterError, match="is no task adapter; `backbone` is for adapters only"):
        lowbit.inspect(tiny.backbone("bert"), backbone=tiny.backbone("bert"))
    with pytest.raises(CheckpointError, match="is not a lowbit backbone"):
        lowbit.inspect(tiny.model("bert"), tiny.backbone("bert"))
    with pytest.raises(CheckpointError, match="is not a model folder"):
        lowbit.inspect(tiny.backbone("bert"), "./nowhere")


def test_the_file_is_the_source_of_every_number(tiny):
    stored = load_file(tiny.backbone("bert") / "model.safetensors")
    row = next(r for r in lowbit.inspect(tiny.backbone("bert"))["modules"] if r["name"].endswith("1.output.dense"))
    assert row["outlier_largest"] == float(stored[f"{row['name']}.outlier_value"].abs().max())
    counts = stored[f"{row['name']}.outlier_ptr"].diff()
    assert row["outlier_rows"][0] == [int(counts.argmax()), int(counts.max())]
    assert row["scale_max"] == float(stored[f"{row['name']}.scale"].max())
