import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

from lowbit.adapter import AdapterInfo, is_adapter, read_adapter, read_info, write_adapter
from lowbit.errors import AdapterError, CheckpointError, OutputExistsError
from tests.models import edit_json, file_bytes

INFO = AdapterInfo(
    fingerprint="f" * 64,
    task="toy",
    metrics=("accuracy", "f1"),
    primary="f1",
    label_names=("no", "yes"),
    max_length=77,
    trained={"outliers": 3, "head": 4},
    options={"epochs": 0.5, "learning_rate": None},
)
TENSORS = {
    "classifier.weight": torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),
    "encoder.x.outlier_value": torch.tensor([1.5, -2.0, 0.1], dtype=torch.float16),
}


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "adapter", INFO, TENSORS)


def test_what_is_written_is_read_back(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "task_adapter.json",
        "task_adapter.safetensors",
    ]
    info, tensors = read_adapter(folder)
    assert info == read_info(folder) == INFO
    assert set(tensors) == set(TENSORS)
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_regression_has_no_label_names(tmp_path):
    info = dataclasses.replace(INFO, label_names=None)
    assert read_info(write_adapter(tmp_path / "a", info, TENSORS)) == info


def test_the_description_is_plain_json(folder):
    values = json.loads((folder / "task_adapter.json").read_text(encoding="utf-8"))
    assert values["label_names"] == ["no", "yes"]
    assert values["version"] == 1
    assert values == json.loads(json.dumps(INFO.to_dict()))


def test_the_same_adapter_has_the_same_bytes(folder, tmp_path):
    reordered = dict(reversed(TENSORS.items()))
    assert file_bytes(write_adapter(tmp_path / "b", INFO, reordered)) == file_bytes(folder)


def test_the_card_names_task_and_backbone(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Task adapter for toy" in card
    assert INFO.fingerprint in card
    assert 'lowbit.load("ITS-BACKBONE"' in card
    assert "3 in outliers, 4 in head" in card
    assert "- Labels: `no`, `yes`" in card
    assert "No evaluation set was given." in card


def test_the_card_of_a_language_model_has_no_labels(tmp_path):
    info = dataclasses.replace(INFO, label_names=None, task_type="causal-lm")
    card = (write_adapter(tmp_path / "a", info, TENSORS) / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in card
    assert "tuned on plain text" in card
    assert "Labels" not in card
    assert "predict" not in card


def test_an_existing_output_is_refused_and_not_touched(folder):
    before = file_bytes(folder)
    with pytest.raises(OutputExistsError, match="exists already"):
        write_adapter(folder, INFO, {})
    assert file_bytes(folder) == before


def test_a_failed_write_leaves_nothing(tmp_path):
    class Broken(dict):
        def items(self):
            yield from TENSORS.items()
            raise KeyboardInterrupt

    tensors = dict(TENSORS)
    broken = dataclasses.replace(INFO, options={"value": object()})  # json refuses it after the tensors are written
    with pytest.raises(TypeError):
        write_adapter(tmp_path / "a", broken, tensors)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(tmp_path / "b", INFO, Broken(tensors))
    assert list(tmp_path.iterdir()) == []


def test_is_adapter(folder, tmp_path):
    assert is_adapter(folder)
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "absent")


@pytest.mark.parametrize("reader", [read_info, read_adapter])
def test_another_directory_is_no_adapter(reader, tmp_path):
    with pytest.raises(AdapterError, match=r"is not a task adapter: task_adapter.json is missing"):
        reader(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "{}", "\udcff"])
def test_damaged_json_is_named(folder, text):
    (folder / "task_adapter.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(AdapterError, match=r"task_adapter.json"):
        read_info(folder)


REQUIRED = ["fingerprint", "task", "task_type", "metrics", "primary", "label_names", "max_length", "scores", "backbone"]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_field_is_named(folder, key):
    edit_json(folder / "task_adapter.json", lambda values: values.pop(key))
    with pytest.raises(AdapterError, match=f"task_adapter.json is damaged: .*{key}"):
        read_info(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("metrics", "f1"), ("label_names", "ab"), ("max_length", "x"), ("fingerprint", 5), ("more", 1)]
)
def test_a_wrong_field_is_named(folder, key, value):
    edit_json(folder / "task_adapter.json", lambda values: values.update({key: value}))
    with pytest.raises(AdapterError, match=f"task_adapter.json is damaged: .*{key}"):
        read_info(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(folder, version):
    edit_json(folder / "task_adapter.json", lambda values: values.update(version=version))
    with pytest.raises(AdapterError, match=f"format version {version!r}, this lowbit reads 1"):
        read_info(folder)


@pytest.mark.parametrize("name", TENSORS)
def test_a_flipped_bit_is_named_by_tensor(folder, name):
    path = folder / "task_adapter.safetensors"
    data = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as stored:
        needle = stored.get_tensor(name).numpy().tobytes()
    data[data.rindex(needle)] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"task_adapter.safetensors: tensor '{name}' does not match its checksum"):
        read_adapter(folder)


def test_truncated_or_missing_tensors_are_refused(folder):
    path = folder / "task_adapter.safetensors"
    data = path.read_bytes()
    for cut in (0, 5, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"task_adapter.safetensors"):
            read_adapter(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"task_adapter.safetensors: the file does not exist"):
        read_adapter(folder)
