import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import lowbit
from lowbit.adapter import adapter_target, read_adapter, read_info
from lowbit.errors import AdapterError, OutputExistsError
from lowbit.nn import QuantModule
from tests.models import file_bytes, output
from tests.tiny import BACKBONES


def weights(model):
    """Every parameter and buffer, and the float32 weight of each quantized module."""
    found = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            found[f"{name}.weight"] = module.tensor.dequantize(torch.float32)
    return found


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_merged_model_is_the_adapted_one_bit_for_bit(tiny, arch):
    adapted = lowbit.load(tiny.backbone(arch), tiny.adapter(arch))
    for merged in (
        lowbit.load(tiny.merged(arch)),
        AutoModelForSequenceClassification.from_pretrained(tiny.merged(arch)),
    ):
        expected, found = weights(adapted), weights(merged)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        assert torch.equal(output(merged.eval()), output(adapted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_backbones_merge_exactly_too(tiny, tmp_path, dtype):
    backbone, adapter = tiny.backbone("opt", dtype=dtype), tiny.adapter("opt", dtype=dtype)
    adapted = lowbit.load(backbone, adapter)
    merged = lowbit.load(lowbit.merge(backbone, adapter, tmp_path / "out"))
    assert merged.dtype == dtype
    for name, value in weights(adapted).items():
        assert torch.equal(weights(merged)[name], value), name
    assert torch.equal(output(merged), output(adapted))


def test_step_sizes_are_merged(tiny, tmp_path):
    adapter = tiny.adapter("bert", scales=True, learning_rate=0.05)
    merged = lowbit.load(lowbit.merge(tiny.backbone("bert"), adapter, tmp_path / "out"))
    for name, tensor in read_adapter(adapter)[1].items():
        assert torch.equal(adapter_target(merged, name), tensor), name


def test_a_merged_directory_is_whole_and_says_what_it_is_for(tiny):
    folder, adapter = tiny.merged("bert"), tiny.adapter("bert")
    assert lowbit.verify(folder).quantized_modules == lowbit.verify(tiny.backbone("bert")).quantized_modules == 13
    config = json.loads((folder / "config.json").read_text())
    assert config["lowbit_task"] == json.loads(json.dumps(read_info(adapter).to_dict()))
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tiny.backbone("bert") / name).read_bytes()


def test_a_merged_gpt2_knows_its_padding(tiny):
    assert json.loads((tiny.merged("gpt2") / "config.json").read_text())["pad_token_id"] == 2


def test_a_merged_model_takes_no_adapter(tiny):
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.load(tiny.merged("bert"), tiny.adapter("bert"))


def test_merging_reads_only(tiny, tmp_path):
    before = file_bytes(tiny.backbone("bert")), file_bytes(tiny.adapter("bert"))
    first = lowbit.merge(tiny.backbone("bert"), tiny.adapter("bert"), tmp_path / "first")
    assert first == tmp_path / "first"
    assert (file_bytes(tiny.backbone("bert")), file_bytes(tiny.adapter("bert"))) == before
    assert file_bytes(first) == file_bytes(tiny.merged("bert"))


def test_errors_leave_nothing_behind(tiny, tmp_path):
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.merge(tiny.backbone("bert", seed=1), tiny.adapter("bert"), tmp_path / "out")
    with pytest.raises(AdapterError, match="is not a task adapter"):
        lowbit.merge(tiny.backbone("bert"), tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputExistsError, match="exists already"):
        lowbit.merge(tiny.backbone("bert"), tiny.adapter("bert"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
