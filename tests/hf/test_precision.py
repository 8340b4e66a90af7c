"""Half precision and copies: the stored payload keeps its bytes."""

import copy

import pytest
import torch

from lowbit.nn import QuantLinear, QuantModule
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from tests.models import LANGUAGE_MODELS, load, output, payloads, same, save_tiny, stored


@pytest.mark.parametrize("arch", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_the_payload(backbone, arch, dtype):
    class_name = dict(LANGUAGE_MODELS)[arch]
    model = load(class_name, backbone(arch, class_name))
    before = {name: tensor.clone() for name, tensor in payloads(model).items()}
    expected = output(model)
    model.to(dtype)
    assert same(payloads(model), before)
    assert output(model).dtype == dtype
    model.to(torch.float32)
    assert torch.allclose(output(model), expected, rtol=0.1, atol=0.1)  # norms and biases were rounded on the way


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_keeps_the_payload(backbone, arch, class_name, dtype):
    """Scales stay float32, though transformers casts every floating tensor that it may."""
    folder = backbone(arch, class_name)
    model = load(class_name, folder, dtype=dtype)
    assert model.dtype == dtype
    assert same(payloads(model), payloads(load(class_name, folder)))
    logits = output(model)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    expected = output(load(class_name, folder))
    assert (logits.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("arch", "stored_class", "class_name"),
    [
        ("bert", "BertModel", "BertForSequenceClassification"),
        ("bert", "BertForMaskedLM", "BertModel"),
        ("t5", "T5ForConditionalGeneration", "T5ForSequenceClassification"),
        ("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    ],
)
@pytest.mark.parametrize(
    ("stored", "asked"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float16)],
)
def test_another_task_class_in_another_dtype(backbone, arch, stored_class, class_name, stored, asked):
    """Also where the stored names get or lose the prefix of the base model."""
    folder = backbone(arch, stored_class, dtype=stored)
    model = load(class_name, folder, dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {asked}
    assert same(payloads(model), payloads(load(class_name, folder)))
    assert output(model).dtype == asked


def test_a_float_wo_stays_in_float32(tmp_path):
    source = save_tiny(tmp_path / "m", "t5", "T5ForConditionalGeneration")
    quantize_checkpoint(source, Recipe.parse({"scheme": "w4", "skip": ["*.wo"]}), tmp_path / "q")
    model = load("T5ForConditionalGeneration", tmp_path / "q", dtype=torch.float16)
    assert model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert model.encoder.final_layer_norm.weight.dtype == torch.float16


def test_widening_a_half_precision_backbone_keeps_the_payload(backbone):
    folder = backbone("bert", "BertModel", dtype=torch.bfloat16)
    model = load("BertModel", folder, dtype=torch.float32)
    assert model.dtype == torch.float32
    assert same(payloads(model), payloads(load("BertModel", folder)))
    assert output(model).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_t5_wo_is_quantized_in_half_precision_checkpoints(backbone, tmp_path, dtype):
    """Upstream keeps ``wo`` in float32 because it overflows in float16; quantized it loads, saves and is finite."""
    folder = backbone("t5", "T5ForConditionalGeneration", dtype=dtype)
    model = load("T5ForConditionalGeneration", folder)
    wo = model.encoder.block[0].layer[1].DenseReluDense.wo
    assert type(wo) is QuantLinear
    assert {name: tensor.dtype for name, tensor in wo.tensor.to_tensors().items()} == {
        "weight": torch.uint8,
        "scale": torch.float32,
        "outlier_ptr": torch.int32,
        "outlier_col": torch.uint16,
        "outlier_value": torch.float16,
    }
    assert output(model).isfinite().all()
    model.save_pretrained(tmp_path)
    assert same(stored(tmp_path)[0], stored(folder)[0])
    inputs = []
    wo.register_forward_pre_hook(lambda module, args: inputs.append(args[0].dtype))
    output(model)
    assert inputs == [torch.float32]  # computed in float32, as upstream does


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_a_deep_copy_gives_equal_outputs(backbone, arch, class_name):
    model = load(class_name, backbone(arch, class_name))
    twin = copy.deepcopy(model)
    expected = output(model)
    for module in model.modules():
        if isinstance(module, QuantModule):
            module.scale.zero_()
    assert torch.equal(output(twin), expected)
    assert not torch.equal(output(model), expected)
