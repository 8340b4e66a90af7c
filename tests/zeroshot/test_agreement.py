import math

import pytest
import torch

import lowbit
from lowbit.errors import DataError
from lowbit.zeroshot.agreement import agreement
from tests.models import tiny_batch

KINDS = [("bert", "BertForSequenceClassification"), ("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")]


def batches(model, number=2):
    batch = tiny_batch(model.config)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :4]
    return [batch] * number


@pytest.mark.parametrize(("arch", "kind"), KINDS)
def test_a_model_agrees_with_itself_and_less_and_less_with_fewer_bits(tiny, arch, kind):
    teacher = lowbit.load(tiny.model(arch, kind))
    found = agreement(teacher, teacher, batches(teacher))
    assert found == {"hidden": 0, "divergence": pytest.approx(0, abs=1e-6), "same": 1}
    distances = [
        agreement(lowbit.load(tiny.backbone(arch, kind, recipe=r)), teacher, batches(teacher)) for r in ("w8", "w2")
    ]
    assert 0 < distances[0]["hidden"] < 0.1 * distances[1]["hidden"]
    assert distances[0]["divergence"] < distances[1]["divergence"]
    assert 0 <= distances[1]["same"] <= 1


def test_a_batch_counts_by_its_rows(tiny):
    teacher = lowbit.load(tiny.model("bert", "BertForSequenceClassification"))
    student = lowbit.load(tiny.backbone("bert", "BertForSequenceClassification", recipe="w2"))
    (batch,) = batches(teacher, 1)
    row = {name: value[:1] for name, value in batch.items()}
    other = {name: value[1:] for name, value in batch.items()}
    whole, first, second = (agreement(student, teacher, [part]) for part in (batch, row, other))
    assert whole["divergence"] == pytest.approx((first["divergence"] + second["divergence"]) / 2, rel=1e-3)
    assert agreement(student, teacher, [row, other])["divergence"] == pytest.approx(whole["divergence"], rel=1e-3)


def test_labels_are_not_looked_at_and_modes_stay(tiny):
    teacher = lowbit.load(tiny.model("bert", "BertForSequenceClassification")).train()
    (batch,) = batches(teacher, 1)
    assert agreement(teacher, teacher, [{**batch, "labels": torch.tensor([99, 99])}])["same"] == 1
    assert teacher.training


def test_a_bare_model_has_states_only(tiny):
    teacher, student = lowbit.load(tiny.model("bert")), lowbit.load(tiny.backbone("bert", recipe="w2"))
    found = agreement(student, teacher, batches(teacher))
    assert found.keys() == {"hidden"}
    assert 0 < found["hidden"] < math.inf


def test_no_text_is_an_error(tiny):
    teacher = lowbit.load(tiny.model("bert"))
    with pytest.raises(DataError, match="no text to compare"):
        agreement(teacher, teacher, [])
