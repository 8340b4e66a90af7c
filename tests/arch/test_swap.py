import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowbit.arch import (
    find_module,
    float_weight,
    pack_model,
    roles,
    swap_fake_modules,
    swap_modules,
    weight_shape,
)
from lowbit.errors import SchemeError, UnsupportedModelError, WeightError
from lowbit.nn import FakeQuantLinear, QuantEmbedding, QuantLinear, TiedQuantEmbedding, TiedQuantLinear
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import Scheme
from tests.models import LANGUAGE_MODELS, output, payloads, same, tiny_model

FINE = Scheme(bits=8, outliers=None)


def swapped(model, kinds=("linear", "conv1d", "embedding"), scheme=FINE, swap=swap_modules):
    """Quantize the modules of these kinds in place and return their quantized tensors by path."""
    tensors = {}
    for role in roles(model):
        if role.kind in kinds:
            module = model.get_submodule(role.path)
            tensors[role.path] = quantize_tensor(float_weight(module, module.weight.data), scheme)
    swap(model, tensors)
    return tensors


def test_conv1d_is_transposed_at_the_door():
    module = Conv1D(6, 4)
    assert weight_shape(module) == (6, 4)
    assert torch.equal(float_weight(module, module.weight), module.weight.t())
    linear = nn.Linear(4, 6)
    assert weight_shape(linear) == (6, 4)
    assert float_weight(linear, linear.weight) is linear.weight
    assert weight_shape(nn.Embedding(10, 3)) == (10, 3)


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_the_swapped_model_computes_with_the_decoded_weights(arch, class_name):
    """Bit for bit what the float model gives with ``dequantize()`` in the place of its weights."""
    model = tiny_model(arch, class_name)
    reference = copy.deepcopy(model)
    for path, tensor in swapped(model, scheme=Scheme(bits=4)).items():
        module = reference.get_submodule(path)
        module.weight.data.copy_(float_weight(module, tensor.dequantize()))
    assert torch.allclose(output(model), output(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_types_biases_and_ties(arch, class_name):
    model = tiny_model(arch, class_name)
    before = {role.path: (role.kind, model.get_submodule(role.path)) for role in roles(model)}
    swapped(model)
    table = next(model.get_submodule(path) for path, (kind, _) in before.items() if kind == "embedding")
    assert isinstance(table, QuantEmbedding)
    for path, (kind, old) in before.items():
        new = model.get_submodule(path)
        if kind in ("linear", "conv1d"):
            assert type(new) is QuantLinear
            assert (new.bias is None) == (old.bias is None)
            assert new.bias is None or torch.equal(new.bias, old.bias)
        elif kind == "tied":
            assert type(new) is (TiedQuantEmbedding if isinstance(old, nn.Embedding) else TiedQuantLinear)
            assert new._source[0] is table
            assert all(name == "bias" for name, _ in new.named_parameters())
        elif kind == "skipped":
            assert new is old


def test_an_untied_projection_stays_float():
    model = tiny_model("t5-v1.1", "T5ForConditionalGeneration")
    head = model.lm_head
    swapped(model)
    assert model.lm_head is head
    assert type(model.encoder.embed_tokens) is TiedQuantEmbedding


def test_float_embeddings_keep_their_ties():
    model = tiny_model("opt", "OPTForCausalLM")
    swapped(model, kinds=("linear",))
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    model.tie_weights()
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    assert model.resize_token_embeddings(70).weight.shape[0] == 70


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_tie_weights_may_be_called(arch, class_name):
    model = tiny_model(arch, class_name)
    swapped(model)
    before = output(model)
    model.tie_weights()
    assert torch.equal(output(model), before)
    types = {type(module) for module in model.modules()}
    assert TiedQuantLinear in types or arch == "t5-v1.1"


def test_ties_that_are_not_quantized_stay():
    model = tiny_model("bert", "BertForMaskedLM")
    swapped(model)
    assert model.all_tied_weights_keys == {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_other_instances_of_the_class_keep_their_ties():
    model, other = (tiny_model("gpt2", "GPT2LMHeadModel") for _ in range(2))
    swapped(model)
    assert other._tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}
    assert type(other)._tied_weights_keys == other._tied_weights_keys
    assert model._tied_weights_keys == {}


@pytest.mark.parametrize(("arch", "class_name"), [("bert", "BertModel"), ("t5", "T5ForConditionalGeneration")])
def test_resizing_is_refused(arch, class_name):
    model = tiny_model(arch, class_name)
    swapped(model)
    with pytest.raises(UnsupportedModelError, match="resize the float model first"):
        model.resize_token_embeddings(100)


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_a_deep_copy_is_independent(arch, class_name):
    model = tiny_model(arch, class_name)
    swapped(model)
    twin = copy.deepcopy(model)
    before = output(model)
    assert torch.equal(output(twin), before)
    table = twin.get_submodule(find_module(twin, next(role.name for role in roles(tiny_model(arch, class_name)))))
    table.scale.mul_(2)
    changed = output(twin)
    assert not torch.equal(changed, before)
    assert torch.equal(output(model), before)
    for module in twin.modules():
        if isinstance(module, TiedQuantLinear | TiedQuantEmbedding):
            assert module._source[0] is table


def test_padding_and_dtype_of_the_table():
    model = tiny_model("roberta", "RobertaModel").to(torch.bfloat16)
    swapped(model)
    table = model.embeddings.word_embeddings
    assert table.padding_idx == 1
    assert table(torch.tensor([3])).dtype == torch.bfloat16


@pytest.mark.parametrize(("arch", "class_name"), LANGUAGE_MODELS)
def test_fake_quantizers_start_as_the_quantized_model_and_are_packed_into_it(arch, class_name):
    reference, model = (tiny_model(arch, class_name) for _ in range(2))
    scheme = Scheme(bits=3)
    swapped(reference, scheme=scheme)
    blocks = [role.path for role in roles(model) if role.kind in ("linear", "conv1d")]
    swapped(model, scheme=scheme, swap=swap_fake_modules)
    assert [path for path, module in model.named_modules() if isinstance(module, FakeQuantLinear)] == blocks
    torch.testing.assert_close(output(model), output(reference), rtol=1e-5, atol=1e-5)
    pack_model(model)
    assert same(payloads(model), payloads(reference))
    assert torch.equal(output(model), output(reference))
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in reference.named_modules()]


@pytest.mark.parametrize(("arch", "class_name"), [("t5", "T5ForConditionalGeneration"), ("gpt2", "GPT2LMHeadModel")])
def test_every_latent_weight_gets_a_gradient(arch, class_name):
    model = tiny_model(arch, class_name)
    swapped(model, scheme=Scheme(bits=3), swap=swap_fake_modules)
    with torch.enable_grad():
        batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[4, 5, 6]])}
        model(**batch).loss.backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing == set()


def test_a_module_that_cannot_be_trained_or_packed_is_named():
    with pytest.raises(SchemeError, match=r"layer\.0\.attention\.self\.query: only symmetric grids"):
        swapped(tiny_model("bert", "BertModel"), ("linear",), Scheme(symmetric=False), swap_fake_modules)
    model = tiny_model("bert", "BertModel")
    swapped(model, ("linear",), swap=swap_fake_modules)
    dense = model.encoder.layer[1].output.dense
    dense.latent.data[0, 0] = torch.nan
    with pytest.raises(WeightError, match=r"layer\.1\.output\.dense: 1 of 1536 weights are NaN"):
        pack_model(model)
    assert model.encoder.layer[1].output.dense is dense
