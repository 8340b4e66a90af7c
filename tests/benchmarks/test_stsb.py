import pytest
import stsb
import torch

import lowbit
from lowbit.nn import QuantLinear


@pytest.fixture
def folder(tiny):
    return tiny.model("bert")


@pytest.fixture
def model(folder):
    return stsb.load_model(folder)


def test_a_recipe_gives_the_weights_and_bits_of_lowbit_itself(folder, model):
    found = stsb.quantize_lowbit(model, "w3o2")
    backbone = stsb.load_model(folder)
    plan = lowbit.quantize(backbone, "w3o2")
    expected = {path: m.weight for path, m in backbone.named_modules() if isinstance(m, QuantLinear)}
    assert found.weights.keys() == expected.keys() == stsb.block_linears(model).keys()
    assert all(torch.equal(weight, expected[path]) for path, weight in found.weights.items())
    assert found.effective_bits == pytest.approx(plan.effective_bits)


def test_bits_of_another_quantizer_are_pooled_over_the_weights(model):
    found = stsb.quantize_each(model, lambda weight: (weight * 0.75, 5 * weight.numel() + 1))
    linears = stsb.block_linears(model)
    count = sum(weight.numel() for weight in linears.values())
    assert found.effective_bits == pytest.approx(5 + len(linears) / count)
    assert stsb.weight_error(linears, found.weights) == pytest.approx(0.25, rel=1e-3)
    assert {weight.dtype for weight in found.weights.values()} == {torch.float32}


def test_weights_are_replaced_inside_the_block_only_and_change_the_embeddings(folder, model):
    sentences = stsb.Sentences(folder, ["good film", "bad book the", "good film"])
    before = sentences.embed(model)
    assert before.shape == (2, 32)
    with stsb.replaced(model, stsb.quantize_lowbit(model, "w2").weights):
        assert not torch.equal(sentences.embed(model), before)
    assert torch.equal(sentences.embed(model), before)


def test_an_embedding_is_the_normalised_mean_over_a_sentence_whatever_its_batch(folder, model):
    alone = stsb.Sentences(folder, ["good film"]).embed(model)
    both = stsb.Sentences(folder, ["good film", "bad book the a was it very poor"]).embed(model)
    torch.testing.assert_close(alone[0], both[0])
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))


def test_samples_of_train_are_always_the_same_rows(data_dir, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(data_dir))
    first, second = stsb.sts_examples("train"), stsb.sts_examples("train")
    assert len(first) == 1500
    assert first == second
