"""Low-rank factors on a backbone: putting on, swapping, taking off, and what is refused."""

import pytest
import torch

import lowbit
from lowbit.adapter import adapter_files, apply_adapter, read_adapter, read_info, remove_adapter, write_adapter
from lowbit.errors import AdapterError, CheckpointError
from tests.models import edit_json, output
from tests.tiny import options, toy_data


def tuned(tiny, folder, arch="bert", data=None, rank=4, **changes):
    chosen = options(rank=rank, learning_rate=0.02, head_learning_rate=0.02, **changes)
    return lowbit.tune(tiny.backbone(arch), folder, data or toy_data(), method="lora", options=chosen).path


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter of factors."""
    return tuned(tiny, tmp_path_factory.mktemp("factors") / "out")


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_adapters_of_both_kinds_can_be_swapped(tiny, adapter, tmp_path):
    low_rank, other = adapter, tuned(tiny, tmp_path / "other", rank=2, seed=3)
    values = tiny.adapter("bert")
    model = lowbit.load(tiny.backbone("bert"), values)
    for path in (low_rank, other, values, low_rank, low_rank):
        apply_adapter(model, path)
        expected = state(lowbit.load(tiny.backbone("bert"), path))
        found = state(model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    remove_adapter(model)
    backbone = lowbit.load(tiny.backbone("bert")).state_dict()
    assert all(torch.equal(value, model.state_dict()[f"bert.{name}"]) for name, value in backbone.items())
    assert not hasattr(model, "peft_config")


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(tiny, adapter, tmp_path):
    model = lowbit.load(tiny.backbone("bert"), adapter)
    before, tokens = state(model), output(model)
    three = tuned(tiny, tmp_path / "three", data=toy_data(("a", "b", "c")))
    gpt2 = tuned(tiny, tmp_path / "gpt2", arch="gpt2")
    info, tensors = read_adapter(adapter)
    name = next(name for name in tensors if "lora_A" in name)
    narrow = write_adapter(tmp_path / "narrow", info, tensors | {name: tensors[name][:, 1:].contiguous()})
    for path, message in (
        (three, "'classifier.bias' is .*; check the labels"),
        (gpt2, "was trained on the backbone"),
        (narrow, "output.dense' fit no quantized linear of a BertForSequenceClassification"),
    ):
        with pytest.raises(AdapterError, match=message):
            apply_adapter(model, path)
        assert torch.equal(output(model), tokens)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_backbone_and_merging_are_refused(tiny, adapter, tmp_path):
    with pytest.raises(AdapterError, match="load the backbone it was trained on"):
        lowbit.load(tiny.backbone("bert", recipe="w3o2"), adapter)
    with pytest.raises(AdapterError, match=r"holds low-rank factors, whose sum with .* quantized again"):
        lowbit.merge(tiny.backbone("bert"), adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_adapter_can_be_verified_and_inspected(tiny, adapter, tmp_path):
    path = adapter
    found = lowbit.verify(path)
    assert (found.tensors, found.fingerprint) == (28, lowbit.verify(tiny.backbone("bert")).fingerprint)
    described = lowbit.inspect(path, backbone=tiny.backbone("bert"))
    assert (described["format"], len(described["tensors"])) == ("factors", 28)
    assert adapter_files(path) == ("adapter_model.safetensors", "task_adapter.json", "adapter_config.json")
    assert "low-rank factors beside its linears" in (path / "README.md").read_text()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in path.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    data = bytearray((damaged / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        lowbit.load(tiny.backbone("bert"), damaged)


def test_the_format_is_read(tiny, tmp_path):
    file = tmp_path / "task_adapter.json"
    file.write_text((tiny.adapter("bert") / file.name).read_text())
    edit_json(file, lambda values: values.pop("format"))
    assert read_info(tmp_path).format == "values"  # what an adapter without the field holds
    edit_json(file, lambda values: values.update(format="magic"))
    with pytest.raises(AdapterError, match="holds 'magic', which this lowbit does not know; update it"):
        read_info(tmp_path)
