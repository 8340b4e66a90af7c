"""Damaged or unfitting files raise; none of them loads."""

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lowbit import LowbitConfig
from lowbit.checkpoint import manifest_metadata, tensor_entry
from lowbit.errors import CheckpointError
from tests.models import edit_json, load, output, payloads


@pytest.fixture
def damaged(backbone, tmp_path):
    """A copy of a BERT backbone that a test may damage."""
    for path in backbone("bert", "BertForMaskedLM").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_flipped_byte(damaged):
    file = damaged / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*' does not match its checksum"):
        AutoModel.from_pretrained(damaged)


def test_a_truncated_file(damaged):
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"bytes found, \d+ expected; fetch the file again"):
        AutoModel.from_pretrained(damaged)


@pytest.mark.parametrize("consistent", [True, False], ids=["manifest rewritten", "manifest kept"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: tensors[name][:-1].clone()}),
        lambda tensors, name: tensors.update({name: tensors[name].to(torch.int64)}),
    ],
    ids=["missing", "wrong shape", "wrong dtype"],
)
def test_a_damaged_payload(damaged, change, consistent):
    name = "bert.encoder.layer.1.output.dense.weight"
    file = damaged / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, name)
    if consistent:
        metadata = manifest_metadata({name: tensor_entry(tensor) for name, tensor in tensors.items()})
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"'{name}'"):
        AutoModel.from_pretrained(damaged)


def test_a_checkpoint_of_another_writer(damaged):
    tensors = load_file(damaged / "model.safetensors")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by lowbit"):
        AutoModel.from_pretrained(damaged)


def test_a_config_of_another_size(damaged):
    edit_json(damaged / "config.json", lambda config: config.update(intermediate_size=64))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.0\.intermediate\.dense: the model asks for shape"):
        AutoModel.from_pretrained(damaged)


@pytest.mark.parametrize("quantized", [True, False])
def test_another_number_of_labels(backbone, quantized):
    """A stored head of another width is an error, or a fresh head where that is asked for and transformers can."""
    folder = backbone("bert", "BertForSequenceClassification")
    options = {"num_labels": 5}
    if not quantized:
        folder, options["quantization_config"] = folder.parent / "m", LowbitConfig("w4")
    with pytest.raises((CheckpointError, RuntimeError)):
        load("BertForSequenceClassification", folder, **options)
    try:
        model = load("BertForSequenceClassification", folder, ignore_mismatched_sizes=True, **options)
    except CheckpointError as error:
        assert "[2, 32] in the checkpoint, the model asks for [5, 32]" in str(error)  # noqa: PT017
    else:
        assert model.classifier.weight.shape == (5, 32)
        assert len(payloads(model)) == 13 * 2 + 12 * 3


def test_shards(backbone, tmp_path):
    model = load("BertForMaskedLM", backbone("bert", "BertForMaskedLM"))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(output(load("BertForMaskedLM", tmp_path)), output(model))
    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: tensor .* checksum"):
        load("BertForMaskedLM", tmp_path)
    shards[1].write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{shards[1].name}: .* expected"):
        load("BertForMaskedLM", tmp_path)


def test_a_state_dict_is_no_directory(backbone):
    folder = backbone("bert", "BertModel")
    config = transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="pass a directory"):
        transformers.BertModel.from_pretrained(None, config=config, state_dict=load_file(folder / "model.safetensors"))
