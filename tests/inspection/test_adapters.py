"""One adapter, and two of one backbone."""

import shutil

import pytest

import lowbit
from lowbit.adapter import read_adapter, write_adapter
from lowbit.errors import AdapterError, CheckpointError
from tests.models import stored


def test_without_a_backbone_nobody_knows_how_far_values_moved(tiny):
    rows = lowbit.inspect(tiny.adapter("bert"))["tensors"]
    assert {row["moved"] for row in rows} == {None}


@pytest.mark.parametrize("class_name", ["BertModel", "BertForSequenceClassification"])
def test_values_moved_from_the_backbone(tiny, class_name):
    adapter, backbone = tiny.adapter("bert", class_name), tiny.backbone("bert", class_name)
    rows = {row["name"]: row for row in lowbit.inspect(adapter, backbone=backbone)["tensors"]}
    _, tensors = read_adapter(adapter)
    base, _ = stored(backbone)
    prefix = "bert." if class_name != "BertModel" else ""
    name = "encoder.layer.0.output.dense.outlier_value"
    start = base[prefix + name].double()
    assert rows[name]["moved"] == pytest.approx(float((tensors[name].double() - start).norm() / start.norm()), rel=1e-5)
    assert 0 < rows["encoder.layer.0.output.LayerNorm.weight"]["moved"] < 0.1
    assert (rows["classifier.weight"]["moved"] is None) == (class_name == "BertModel")
    assert rows["pooler.dense.weight"]["moved"] is not None


def test_an_adapter_equals_itself(tiny):
    found = lowbit.inspect(tiny.adapter("bert"), tiny.adapter("bert"))
    assert (found["kind"], found["equal"]) == ("adapters", True)
    assert {(row["equal"], row["difference"]) for row in found["tensors"]} == {(True, 0)}
    assert {tuple(row["moved"]) for row in found["tensors"]} == {(None, None)}


def test_two_adapters_of_one_backbone(tiny, tmp_path):
    left, right = tiny.adapter("bert", seed=1), tiny.adapter("bert", norms=False)
    found = lowbit.inspect(left, right, backbone=tiny.backbone("bert"))
    assert not found["equal"]
    assert (found["left"]["options"]["seed"], found["right"]["options"]["norms"]) == (1, False)
    assert all("LayerNorm" in name for name in found["tensors_left"])
    assert len(found["tensors_left"]) == 10
    assert found["tensors_right"] == []
    alone = [lowbit.inspect(side, backbone=tiny.backbone("bert"))["tensors"] for side in (left, right)]
    moved = [{row["name"]: row["moved"] for row in rows} for rows in alone]
    for row in found["tensors"]:
        assert row["moved"] == [moved[0][row["name"]], moved[1][row["name"]]]
        assert row["equal"] is False
        assert row["difference"] > 0


def test_heads_of_different_size(tiny, tmp_path):
    info, tensors = read_adapter(tiny.adapter("bert"))
    changed = tensors | {"classifier.bias": tensors["classifier.bias"].new_zeros(5)}
    found = lowbit.inspect(tiny.adapter("bert"), write_adapter(tmp_path / "other", info, changed))
    different = [row for row in found["tensors"] if not row["equal"]]
    assert different == [
        {"name": "classifier.bias", "shape": [[2], [5]], "equal": False, "difference": None, "moved": [None, None]}
    ]
    assert not found["equal"]


def test_adapters_of_two_backbones_are_refused(tiny):
    with pytest.raises(AdapterError, match=r"was trained on the backbone \w+, .* on \w+; compare adapters of one"):
        lowbit.inspect(tiny.adapter("bert"), tiny.adapter("gpt2"))
    with pytest.raises(AdapterError, match=r"was trained on the backbone \w+, .* is \w+; give the backbone it was"):
        lowbit.inspect(tiny.adapter("bert"), backbone=tiny.backbone("bert", seed=1))
    with pytest.raises(AdapterError, match="is no task adapter; give the backbone of an adapter as `backbone`"):
        lowbit.inspect(tiny.adapter("bert"), tiny.backbone("bert"))
    with pytest.raises(CheckpointError, match="is not a lowbit backbone"):
        lowbit.inspect(tiny.adapter("bert"), backbone=tiny.model("bert"))


def test_a_damaged_adapter_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.adapter("bert"), tmp_path / "copy")
    file = folder / "task_adapter.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        lowbit.inspect(tiny.adapter("bert"), folder)
