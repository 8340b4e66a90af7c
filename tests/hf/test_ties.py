"""Tied weights share one payload, in memory and on disk."""

import pytest
import torch
from torch import nn

from lowbit.errors import UnsupportedModelError
from lowbit.nn import QuantEmbedding, TiedQuantEmbedding, TiedQuantLinear
from tests.models import load, output, stored, tiny_model


@pytest.mark.parametrize(
    ("arch", "class_name", "table", "head"),
    [
        ("bert", "BertForMaskedLM", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
        ("roberta", "RobertaForMaskedLM", "roberta.embeddings.word_embeddings", "lm_head.decoder"),
        ("t5", "T5ForConditionalGeneration", "shared", "lm_head"),
        ("opt-projected", "OPTForCausalLM", "model.decoder.embed_tokens", "lm_head"),
        ("gpt2", "GPT2LMHeadModel", "transformer.wte", "lm_head"),
    ],
)
def test_tied_weights_share_one_payload(backbone, tmp_path, arch, class_name, table, head):
    model = load(class_name, backbone(arch, class_name))
    assert type(model.get_submodule(table)) is QuantEmbedding
    assert type(model.get_submodule(head)) is TiedQuantLinear
    assert model.get_submodule(head).source is model.get_submodule(table)
    expected = output(model)
    model.tie_weights()
    assert torch.equal(output(model), expected)
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)[0]
    assert f"{head}.weight" not in tensors
    assert tensors[f"{table}.weight"].dtype == torch.uint8
    width = model.get_submodule(table).embedding_dim
    assert not [name for name, tensor in tensors.items() if tensor.shape == (64, width)]  # no float copy
    model.get_submodule(table).scale.mul_(2)
    assert not torch.equal(output(model), expected)


def test_t5_stacks_read_the_shared_table(backbone):
    model = load("T5ForConditionalGeneration", backbone("t5", "T5ForConditionalGeneration"))
    for stack in (model.encoder, model.decoder):
        assert type(stack.embed_tokens) is TiedQuantEmbedding
        ids = torch.tensor([[3, 5]])
        assert torch.equal(stack.embed_tokens(ids), model.shared(ids))


def test_t5_with_its_own_output_projection(backbone, tmp_path):
    folder = backbone("t5-v1.1", "T5ForConditionalGeneration")
    model = load("T5ForConditionalGeneration", folder)
    own = tiny_model("t5-v1.1", "T5ForConditionalGeneration").lm_head.weight
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, own)
    assert model.config.scale_decoder_outputs is False
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, own)
    model.save_pretrained(tmp_path)
    assert torch.equal(stored(tmp_path)[0]["lm_head.weight"], own)


def test_resizing_is_a_typed_error(backbone):
    model = load("GPT2LMHeadModel", backbone("gpt2", "GPT2LMHeadModel"))
    with pytest.raises(UnsupportedModelError, match="resize the float model first"):
        model.resize_token_embeddings(80)


def test_a_base_model_gets_a_fresh_language_model_head(backbone):
    model = load("BertForMaskedLM", backbone("bert", "BertForSequenceClassification"))
    head = model.cls.predictions
    assert type(head.decoder) is TiedQuantLinear
    assert head.decoder.bias is head.bias
    assert type(head.transform.dense) is nn.Linear
    assert output(model).isfinite().all()
