import pytest
import torch
import transformers

from lowbit.checkpoint import measure, read_manifest
from lowbit.errors import CheckpointError
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme
from tests.models import CLASSIFIERS, LANGUAGE_MODELS, save_tiny, tiny_model


@pytest.mark.parametrize(("arch", "class_name"), [*LANGUAGE_MODELS[:4], CLASSIFIERS[-1]])
def test_measured_equals_planned(tmp_path, arch, class_name):
    done = quantize_checkpoint(save_tiny(tmp_path / "m", arch, class_name), Recipe.parse("w3"), tmp_path / "q")
    size = measure(tmp_path / "q")
    assert size == done.size
    assert size.effective_bits == pytest.approx(done.plan.effective_bits)
    assert size.file_bytes == (tmp_path / "q/model.safetensors").stat().st_size
    assert size.model_bits == pytest.approx(8 * size.file_bytes / size.parameters)
    assert size.parameters == tiny_model(arch, class_name).num_parameters()
    assert size.model_bits > done.plan.model_bits  # the header counts too


def test_bits_by_hand(tmp_path):
    recipe = Recipe.parse({"scheme": "w4o0", "embeddings": 8})
    quantize_checkpoint(save_tiny(tmp_path / "m", "gpt2", "GPT2Model", n_layer=1), recipe, tmp_path / "q")
    rows = 96 + 32 + 128 + 32
    weights = 96 * 32 + 32 * 32 + 128 * 32 + 32 * 128
    size = measure(tmp_path / "q")
    assert size.effective_bits == pytest.approx(4 + 32 * rows / weights)
    assert size.embedding_bits == pytest.approx(8 + 32 / 32)


def test_float_embeddings_have_no_bits(tmp_path):
    recipe = Recipe.parse({"scheme": "w4", "embeddings": "float"})
    quantize_checkpoint(save_tiny(tmp_path / "m", "bert", "BertModel"), recipe, tmp_path / "q")
    assert measure(tmp_path / "q").embedding_bits == 0


def test_a_sigma_threshold_is_measured_not_guessed(tmp_path):
    recipe = Recipe(scheme=Scheme(outliers=OutlierRule(rule="tail", share=None, sigma=2.0)))
    done = quantize_checkpoint(save_tiny(tmp_path / "m", "bert", "BertModel"), recipe, tmp_path / "q")
    entries = read_manifest(tmp_path / "q/model.safetensors")
    outliers = sum(e.shape[0] for name, e in entries.items() if name.endswith("outlier_value"))
    weights = sum(e.shape[0] * e.shape[1] for e in done.plan.quantized if e.kind == "linear")
    assert 0.02 < outliers / weights < 0.12
    assert done.size.effective_bits > done.plan.effective_bits + 0.5


def test_task_classes_and_half_precision(tmp_path):
    source = save_tiny(tmp_path / "m", "bert", "BertForMaskedLM", dtype=torch.bfloat16)
    backbone = quantize_checkpoint(source, Recipe.parse("w4"), tmp_path / "q").size
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "q")
    model.save_pretrained(tmp_path / "c")
    classifier = measure(tmp_path / "c")
    assert classifier.effective_bits == backbone.effective_bits
    assert classifier.embedding_bits == backbone.embedding_bits
    assert classifier.parameters == tiny_model("bert", "BertForSequenceClassification").num_parameters()


def test_a_float_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a lowbit backbone"):
        measure(save_tiny(tmp_path / "m", "bert", "BertModel"))
