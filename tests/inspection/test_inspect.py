"""What ``inspect`` and ``verify`` say of each kind of directory."""

import pytest

import lowbit
from lowbit.adapter import read_info
from lowbit.checkpoint import measure
from lowbit.errors import CheckpointError
from tests.tiny import options, toy_data


def test_a_backbone_lists_its_modules(tiny):
    folder = tiny.backbone("bert")
    found = lowbit.inspect(folder)
    assert found["kind"] == "backbone"
    assert found["fingerprint"] == lowbit.verify(folder).fingerprint
    assert found["effective_bits"] == measure(folder).effective_bits
    names = {entry.name for entry in lowbit.plan(tiny.model("bert"), "w4o2").quantized}
    assert {row["name"] for row in found["modules"]} == names
    linears = [row for row in found["modules"] if row["kind"] == "linear"]
    weights = sum(row["shape"][0] * row["shape"][1] for row in linears)
    stored = sum(row["bits"] * row["shape"][0] * row["shape"][1] for row in linears)
    assert stored / weights == pytest.approx(found["effective_bits"], abs=1e-3)
    assert all(row["outliers"] == round(0.02 * row["shape"][0] * row["shape"][1]) for row in linears)
    assert all(0 < row["scale_min"] <= row["scale_max"] for row in found["modules"])


def test_shards_are_one_backbone(tiny, tmp_path):
    whole = tiny.backbone("bert")
    lowbit.load(whole).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    found, expected = lowbit.inspect(tmp_path / "shards"), lowbit.inspect(whole)
    assert found["modules"] == expected["modules"]
    assert found["fingerprint"] == expected["fingerprint"]


def test_an_adapter_shows_its_task_and_tensors(tiny):
    folder = tiny.adapter("bert")
    found = lowbit.inspect(folder)
    info = read_info(folder)
    assert (found["kind"], found["task"], found["trained"]) == ("adapter", info.task, info.trained)
    assert {row["name"] for row in found["tensors"]} >= {"classifier.weight", "pooler.dense.bias"}
    assert found["bytes"] < (folder / "task_adapter.safetensors").stat().st_size
    assert lowbit.verify(folder).fingerprint == lowbit.verify(tiny.backbone("bert")).fingerprint


def test_a_merged_directory_names_its_task(tiny):
    found = lowbit.inspect(tiny.merged("bert"))
    assert found["kind"] == "merged"
    assert found["task"]["task"] == "toy"
    assert found["fingerprint"] != lowbit.verify(tiny.backbone("bert")).fingerprint


@pytest.mark.parametrize("method", ["ptq", "full"])
def test_a_model_that_was_tuned_first_names_its_task(tiny, tmp_path, method):
    folder = lowbit.tune(tiny.model("bert"), tmp_path / "out", toy_data(), method=method, options=options()).path
    if method == "full":
        folder = lowbit.quantize(folder, "w4", output=tmp_path / "quantized").path
    found = lowbit.inspect(folder)
    assert (found["kind"], found["task"]["task"]) == ("tuned", "toy")
    assert "Before that the whole model was tuned for the task `toy`." in (folder / "README.md").read_text()


def test_a_damaged_adapter_is_found(tiny, tmp_path):
    source, copy = tiny.adapter("bert"), tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".safetensors":
            data[-1] ^= 1
        (copy / file.name).write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        lowbit.verify(copy)


@pytest.mark.parametrize("function", [lowbit.inspect, lowbit.verify], ids=["inspect", "verify"])
def test_a_float_model_is_no_lowbit_directory(tiny, function):
    with pytest.raises(CheckpointError, match="not a lowbit backbone"):
        function(tiny.model("bert"))
