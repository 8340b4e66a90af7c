import json

import pytest
import torch
import transformers

import lowbit
from lowbit.adapter import apply_adapter, load_classifier
from lowbit.checkpoint import read_quantization_config
from lowbit.errors import CheckpointError, OutputExistsError, SchemeError
from lowbit.tuning import prepare
from tests.models import CLASSIFIERS, LANGUAGE_MODELS, file_bytes, output, save_tiny, tiny_model, tiny_tokenizer
from tests.tiny import BACKBONES

MODELS = [*LANGUAGE_MODELS, *CLASSIFIERS, ("t5", "T5EncoderModel"), ("bert", "BertModel")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("arch", "class_name"), MODELS)
def test_streaming_and_saving_write_the_same_files(tmp_path, arch, class_name, dtype):
    folder = save_tiny(tmp_path / "float", arch, class_name, dtype=dtype)
    tiny_tokenizer(arch.split("-")[0]).save_pretrained(folder)
    streamed = lowbit.quantize(folder, "w4", output=tmp_path / "streamed")
    model = getattr(transformers, class_name).from_pretrained(folder)
    plan = lowbit.quantize(model, "w4")
    assert lowbit.save(model, tmp_path / "saved") == tmp_path / "saved"
    assert plan == streamed.plan
    files = file_bytes(tmp_path / "streamed")
    assert file_bytes(tmp_path / "saved") == files
    expected = {"README.md", "config.json", "model.safetensors", "plan.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) - {"generation_config.json"} == expected
    assert ("generation_config.json" in files) == (folder / "generation_config.json").is_file()


@pytest.mark.parametrize("recipe", ["w3g16o1", {"scheme": "w2", "skip": ["*.0.*"], "embeddings": "float"}])
def test_other_recipes_and_seeds(tiny, tmp_path, recipe):
    lowbit.quantize(tiny.model("bert"), recipe, output=tmp_path / "streamed", seed=4)
    model = lowbit.load(tiny.model("bert"))
    lowbit.quantize(model, recipe, seed=4)
    lowbit.save(model, tmp_path / "saved")
    assert file_bytes(tmp_path / "saved") == file_bytes(tmp_path / "streamed")


@pytest.mark.parametrize("arch", BACKBONES)
def test_a_loaded_backbone_is_saved_as_it_was(tiny, tmp_path, arch):
    before = file_bytes(tiny.backbone(arch))
    after = file_bytes(lowbit.save(lowbit.load(tiny.backbone(arch)), tmp_path / "again"))
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} <= {"README.md"}  # which names its source


def test_without_a_source_there_is_no_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "cwd" / "tokenizer.json").write_text("of another model")
    model = tiny_model("bert", "BertModel")
    lowbit.quantize(model)
    lowbit.save(model, tmp_path / "out")
    assert set(file_bytes(tmp_path / "out")) == {"README.md", "config.json", "model.safetensors", "plan.json"}
    assert "# BertModel, quantized with lowbit" in (tmp_path / "out" / "README.md").read_text()
    assert torch.equal(output(lowbit.load(tmp_path / "out")), output(model))


def test_a_given_source_is_used(tiny, tmp_path):
    model = tiny_model("bert", "BertModel")
    lowbit.quantize(model, "w4o2")
    lowbit.save(model, tmp_path / "out", source=tiny.model("bert"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tiny.backbone("bert") / "model.safetensors"
    ).read_bytes()


def test_values_that_are_being_trained_are_saved_in_their_stored_dtype(tiny, tmp_path):
    model, _ = load_classifier(tiny.backbone("bert"), None, seed=0)
    lowbit.save(model, tmp_path / "before")
    prepare(model, scales=True)
    lowbit.save(model, tmp_path / "after")
    assert file_bytes(tmp_path / "after") == file_bytes(tmp_path / "before")
    lowbit.verify(tmp_path / "after")


def test_an_active_adapter_is_saved_as_merged(tiny, tmp_path):
    model, _ = load_classifier(tiny.backbone("bert"), ("no", "yes"), seed=0)
    apply_adapter(model, tiny.adapter("bert"))
    lowbit.save(model, tmp_path / "out")
    merged = tiny.merged("bert")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_saving_does_not_change_the_model(tiny, tmp_path):
    model = lowbit.load(tiny.backbone("gpt2"))
    expected, config = output(model), model.config.to_dict()
    lowbit.save(model, tmp_path / "out")
    assert model.config.to_dict() == config
    assert torch.equal(output(model), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "lowbit"


def test_a_float_model_is_refused(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="not quantized by lowbit; quantize it first, or use save_pretrained"):
        lowbit.save(lowbit.load(tiny.model("bert")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused(tiny, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputExistsError, match="exists already"):
        lowbit.save(lowbit.load(tiny.backbone("bert")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupt_leaves_nothing(tiny, tmp_path, monkeypatch):
    model = lowbit.load(tiny.backbone("bert"))

    def stop(*arguments):
        assert list(tmp_path.iterdir()) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(lowbit.checkpoint.backbone, "copy_side_files", stop)
    with pytest.raises(KeyboardInterrupt):
        lowbit.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_two_kinds_of_input_take_their_own_arguments(tiny, tmp_path):
    with pytest.raises(SchemeError, match=r"give `output`, the directory to write the backbone to"):
        lowbit.quantize(tiny.model("bert"))
    with pytest.raises(SchemeError, match=r"quantized in place; write it with `lowbit.save"):
        lowbit.quantize(tiny_model("bert", "BertModel"), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_save_pretrained_keeps_the_errors_of_what_a_class_has(backbone, tmp_path):
    folder = backbone("t5", "T5ForConditionalGeneration")
    whole = read_quantization_config(folder)["errors"]
    transformers.T5ForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path / "whole")
    assert read_quantization_config(tmp_path / "whole")["errors"] == whole
    transformers.T5EncoderModel.from_pretrained(folder).save_pretrained(tmp_path / "encoder")
    kept = {name: error for name, error in whole.items() if not name.startswith("decoder.")}
    assert read_quantization_config(tmp_path / "encoder")["errors"] == kept
    assert len(kept) < len(whole)
