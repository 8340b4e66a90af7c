"""Loading and saving through transformers: every known trap has a test."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import lowbit
from lowbit import LowbitConfig
from lowbit.checkpoint import read_quantization_config
from lowbit.errors import CheckpointError
from lowbit.nn import QuantLinear
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from tests.models import (
    CLASSIFIERS,
    LANGUAGE_MODELS,
    load,
    output,
    payloads,
    same,
    save_tiny,
    stored,
    tiny_batch,
    tiny_model,
)

MODELS = [*LANGUAGE_MODELS, *CLASSIFIERS, ("bert", "BertModel"), ("t5", "T5EncoderModel")]
OTHER_CLASSES = [
    ("bert", "BertModel", "BertForSequenceClassification", ["classifier"]),
    ("bert", "BertForMaskedLM", "BertForSequenceClassification", ["classifier", "bert.pooler.dense"]),
    ("bert", "BertForSequenceClassification", "BertForQuestionAnswering", ["qa_outputs"]),
    ("bert", "BertForSequenceClassification", "BertModel", []),
    ("roberta", "RobertaForMaskedLM", "RobertaForSequenceClassification", ["classifier.dense", "classifier.out_proj"]),
    (
        "t5",
        "T5ForConditionalGeneration",
        "T5ForSequenceClassification",
        ["classification_head.dense", "classification_head.out_proj"],
    ),
    ("t5", "T5ForSequenceClassification", "T5EncoderModel", []),
    ("opt", "OPTForCausalLM", "OPTForSequenceClassification", ["score"]),
    ("opt", "OPTModel", "OPTForCausalLM", []),
    ("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", ["score"]),
    ("gpt2", "GPT2Model", "GPT2LMHeadModel", []),
]


@pytest.mark.parametrize(("arch", "class_name"), MODELS)
def test_load_save_load(backbone, tmp_path, arch, class_name):
    """Quantized while loading, streamed, saved and loaded again: the same logits, tensors and manifest."""
    folder = backbone(arch, class_name)
    streamed = load(class_name, folder)
    fresh = load(class_name, folder.parent / "m", quantization_config=LowbitConfig("w4"))
    assert torch.equal(output(fresh), output(streamed))
    assert same(payloads(fresh), payloads(streamed))
    for name, model in {"a": streamed, "b": fresh}.items():
        model.save_pretrained(tmp_path / name)
        assert torch.equal(output(load(class_name, tmp_path / name)), output(streamed))
        tensors, manifest = stored(tmp_path / name)
        assert same(tensors, stored(folder)[0])
        assert manifest == stored(folder)[1]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["quantization_config"] == json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_eight_bits_are_close_and_two_bits_are_not(backbone, arch, class_name):
    """Relative error of the output: 8 bits stay below 6 % even in these untrained models, 4 bits do not."""
    expected = output(tiny_model(arch, class_name))

    def error(recipe):
        found = output(load(class_name, backbone(arch, class_name, recipe)))
        return float((found - expected).norm() / expected.norm())

    eight, four, two = error("w8"), error("w4"), error("w2")
    assert eight < 0.06 < four < two


@pytest.mark.parametrize(("arch", "stored_class", "class_name", "heads"), OTHER_CLASSES)
def test_another_task_class(backbone, arch, stored_class, class_name, heads):
    """Codes bit-equal to the backbone's, and a fresh float head: never an empty quantized one."""
    folder = backbone(arch, stored_class)
    source = load(stored_class, folder)
    model, report = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    found = payloads(model)
    expected = {name: tensor for name, tensor in payloads(source).items() if name in found}
    assert same(found, expected)
    assert len(found) == len(payloads(source)) or class_name == "T5EncoderModel"
    assert {name.rpartition(".")[0] for name in report["missing_keys"]} == set(heads)
    for head in heads:
        assert type(model.get_submodule(head)) is nn.Linear
        assert model.get_submodule(head).weight.std() > 0
    assert output(model).isfinite().all()


@pytest.mark.parametrize(
    ("arch", "class_name", "heads"),
    [
        ("bert", "BertForSequenceClassification", ["classifier", "bert.pooler.dense"]),
        ("bert", "BertForQuestionAnswering", ["qa_outputs"]),
        ("bert", "BertForTokenClassification", ["classifier"]),
        ("bert", "BertForMaskedLM", ["cls.predictions.transform.dense"]),
        ("roberta", "RobertaForSequenceClassification", ["classifier.dense", "classifier.out_proj"]),
        ("t5", "T5ForSequenceClassification", ["classification_head.dense", "classification_head.out_proj"]),
        ("opt", "OPTForQuestionAnswering", ["qa_outputs"]),
        ("gpt2", "GPT2ForSequenceClassification", ["score"]),
    ],
)
def test_heads_with_and_without_bias_stay_float(tmp_path, arch, class_name, heads):
    source = save_tiny(tmp_path / "m", arch, class_name)
    reference = tiny_model(arch, class_name)
    model = load(class_name, source, quantization_config=LowbitConfig("w4"))
    for head in heads:
        assert type(model.get_submodule(head)) is nn.Linear
        assert torch.equal(model.get_submodule(head).weight, reference.get_submodule(head).weight)


def test_a_missing_import_is_an_error_not_a_random_model(backbone):
    folder = backbone("bert", "BertModel")
    script = f"from transformers import AutoModel; AutoModel.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ignore_mismatched_sizes" in done.stderr


def test_gpt2_conv1d_is_transposed_once(backbone):
    model = load("GPT2LMHeadModel", backbone("gpt2", "GPT2LMHeadModel", "w8"))
    found = model.transformer.h[0].mlp.c_fc
    expected = tiny_model("gpt2", "GPT2LMHeadModel").transformer.h[0].mlp.c_fc.weight.t()
    assert type(found) is QuantLinear
    assert found.weight.shape == expected.shape == (128, 32)
    assert (found.weight - expected).abs().max() < 0.02


def test_generation_runs_on_a_backbone(backbone):
    for arch, class_name in [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")]:
        model = load(class_name, backbone(arch, class_name))
        ids = model.generate(**tiny_batch(model.config), max_new_tokens=4, do_sample=False)
        assert ids.shape[0] == 2


def test_an_encoder_of_a_whole_backbone_can_be_saved(backbone, tmp_path):
    model = load("T5EncoderModel", backbone("t5", "T5ForConditionalGeneration"))
    model.save_pretrained(tmp_path)
    assert torch.equal(output(load("T5EncoderModel", tmp_path)), output(model))
    config = json.loads((tmp_path / "config.json").read_text())
    names = [name for group in config["quantization_config"]["groups"] for name in group["modules"]]
    assert names
    assert not [name for name in names if name.startswith("decoder")]


def test_an_encoder_keeps_a_recipe_that_speaks_of_the_decoder(backbone, tmp_path):
    source = backbone("t5", "T5ForConditionalGeneration").parent / "m"
    recipe = Recipe.parse({"scheme": "w4", "skip": ["decoder.*.wo"]})
    quantize_checkpoint(source, recipe, tmp_path / "q")
    encoder = load("T5EncoderModel", tmp_path / "q")
    lowbit.save(encoder, tmp_path / "e")
    assert torch.equal(output(load("T5EncoderModel", tmp_path / "e")), output(encoder))


def test_a_model_quantized_in_memory_can_be_saved_by_transformers(backbone, tmp_path):
    model = tiny_model("bert", "BertForMaskedLM")
    lowbit.quantize(model, "w4")
    assert model.is_quantized
    model.save_pretrained(tmp_path)
    assert same(stored(tmp_path)[0], stored(backbone("bert", "BertForMaskedLM"))[0])
    assert torch.equal(output(load("BertForMaskedLM", tmp_path)), output(model))


def test_the_stored_recipe_wins(backbone):
    folder = backbone("bert", "BertModel")
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load("BertModel", folder, quantization_config=LowbitConfig("w2"))
    assert same(payloads(model), payloads(load("BertModel", folder)))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"bert": "disk", "classifier": "cpu"}], ids=str)
def test_device_maps(backbone, tmp_path, device_map):
    folder = backbone("bert", "BertForSequenceClassification")
    model = load("BertForSequenceClassification", folder, device_map=device_map, offload_folder=str(tmp_path))
    assert torch.equal(output(model).cpu(), output(load("BertForSequenceClassification", folder)))


def test_the_trainer_accepts_the_model(backbone, tmp_path):
    """One step on the head; the backbone does not change, and the saved checkpoint loads."""
    folder = backbone("bert", "BertForMaskedLM")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    before = {name: tensor.clone() for name, tensor in payloads(model).items()}
    head = model.classifier.weight.detach().clone()
    batch = tiny_batch(model.config)
    rows = [{**{name: value[row] for name, value in batch.items()}, "labels": row} for row in (0, 1)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert same(payloads(model), before)
    assert not torch.equal(model.classifier.weight, head)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(output(again), output(model.eval()))


def test_compile_traces_the_whole_graph(backbone):
    model = load("BertForSequenceClassification", backbone("bert", "BertForSequenceClassification"))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    batch = tiny_batch(model.config)
    with torch.no_grad():
        assert torch.allclose(compiled(**batch).logits, output(model), rtol=1e-5, atol=1e-5)


def test_plug_in_answers(backbone):
    model = load("BertModel", backbone("bert", "BertModel"))
    quantizer = model.hf_quantizer
    assert model.is_quantized
    assert quantizer.is_serializable()
    assert quantizer.is_trainable is True
    assert quantizer.is_qat_trainable is True
    with pytest.raises(CheckpointError, match="load the float model instead"):
        model.dequantize()


def test_config_object(backbone):
    folder = backbone("bert", "BertModel")
    config = transformers.AutoConfig.from_pretrained(folder)
    parsed = LowbitConfig.from_dict(config.quantization_config)
    assert parsed.parsed_recipe() == Recipe.parse("w4")
    assert len(parsed.modules()) == 13
    with pytest.warns(UserWarning, match=r"unknown keys.*\['later'\]"):
        LowbitConfig("w4", later=1)


def test_auto_classes_pick_their_heads(backbone):
    folder = backbone("bert", "BertForMaskedLM")
    assert AutoModelForMaskedLM.from_pretrained(folder).config.architectures == ["BertForMaskedLM"]
    assert type(AutoModelForQuestionAnswering.from_pretrained(folder).qa_outputs) is nn.Linear


def test_a_budget_on_loading(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertModel")
    recipe = Recipe.parse({"target_bits": 4.5, "scheme": {"outliers": {"spread": "model"}}})
    quantize_checkpoint(source, recipe, tmp_path / "q")
    model = transformers.BertModel.from_pretrained(source, quantization_config=LowbitConfig(recipe))
    assert model.config.quantization_config.to_dict() == read_quantization_config(tmp_path / "q")
