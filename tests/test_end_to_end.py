"""One float model goes the whole way: quantize, load, tune, adapter, merge, evaluate, predict."""

import pytest
import torch
import transformers

import lowbit
from lowbit.adapter import adapter_target, apply_adapter, read_adapter, remove_adapter
from lowbit.arch import find_module
from lowbit.errors import AdapterError
from lowbit.nn import QuantModule
from tests.models import file_bytes, output
from tests.tiny import BACKBONES, RECIPE, options, random_states, texts_of, toy_data

LITTLE = {"norms": False, "biases": False, "scales": False}
EVERYTHING = {"scales": True, "learning_rate": 0.05, "head_learning_rate": 0.02}


def block(prefix, names):
    return [f"{prefix}.{name}" for name in names.split()]


BERT_BLOCK = "attention.self.query attention.self.key attention.self.value attention.output.dense"
BERT_BLOCK += " intermediate.dense output.dense"
BERT_NORMS = "attention.output.LayerNorm output.LayerNorm"
BERT = ["embeddings.word_embeddings"] + [
    name for layer in (0, 1) for name in block(f"encoder.layer.{layer}", BERT_BLOCK)
]
BERT_SKIPPED = [
    "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.LayerNorm",
    *(name for layer in (0, 1) for name in block(f"encoder.layer.{layer}", BERT_NORMS)),
]


def t5_stack(stack, attentions):
    """Quantized and skipped modules of a stack whose blocks have these attention layers before the dense one."""
    quantized, skipped = [], [f"{stack}.embed_tokens", f"{stack}.final_layer_norm"]
    for index in (0, 1):
        layer = f"{stack}.block.{index}.layer"
        for number, attention in enumerate(attentions):
            quantized += block(f"{layer}.{number}.{attention}", "q k v o")
            skipped.append(f"{layer}.{number}.layer_norm")
        last = len(attentions)
        quantized += block(f"{layer}.{last}.DenseReluDense", "wi wo")
        skipped.append(f"{layer}.{last}.layer_norm")
    return quantized, [*skipped, f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"]


ENCODER, ENCODER_SKIPPED = t5_stack("encoder", ["SelfAttention"])
DECODER, DECODER_SKIPPED = t5_stack("decoder", ["SelfAttention", "EncDecAttention"])
OPT_BLOCK = "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj fc1 fc2"
OPT_NORMS = "self_attn_layer_norm final_layer_norm"

# What of each backbone is quantized and what is not, tied modules included.
MODULES = {
    "bert": (BERT, [*BERT_SKIPPED, "pooler.dense"]),
    "roberta": (BERT, [*BERT_SKIPPED, *block("lm_head", "dense layer_norm decoder"), "lm_head"]),
    "t5": (["shared", *ENCODER, *DECODER], [*ENCODER_SKIPPED, *DECODER_SKIPPED, "lm_head"]),
    "opt": (
        ["decoder.embed_tokens"] + [name for i in (0, 1) for name in block(f"decoder.layers.{i}", OPT_BLOCK)],
        ["decoder.embed_positions", "decoder.final_layer_norm", "lm_head"]
        + [name for i in (0, 1) for name in block(f"decoder.layers.{i}", OPT_NORMS)],
    ),
    "gpt2": (
        ["wte"] + [name for i in (0, 1) for name in block(f"h.{i}", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj")],
        ["wpe", "ln_f", "lm_head"] + [name for i in (0, 1) for name in block(f"h.{i}", "ln_1 ln_2")],
    ),
}


def state(model):
    """Bytes of every parameter and buffer."""
    return {name: value.clone().reshape(-1).view(torch.uint8) for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def float32_weights(model):
    """The float32 weight of each quantized module and every float parameter."""
    quantized = {n: m.tensor.dequantize(torch.float32) for n, m in model.named_modules() if isinstance(m, QuantModule)}
    return quantized | {name: parameter.float() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("arch", BACKBONES)
def test_the_whole_way(tiny, tmp_path, arch):
    source, data = tiny.model(arch), toy_data()
    before, states = file_bytes(source), random_states()

    # quantize: exactly these modules
    quantized = lowbit.quantize(source, RECIPE, output=tmp_path / "backbone")
    backbone = quantized.path
    expected, skipped = MODULES[arch]
    assert sorted(entry.name for entry in quantized.plan.quantized) == sorted(expected)
    assert sorted(entry.name for entry in quantized.plan.entries if entry.scheme is None) == sorted(skipped)
    assert random_states() == states

    # load: exactly these modules, found in the classes of transformers too
    loaded = lowbit.load(backbone)
    automatic = getattr(transformers, BACKBONES[arch]).from_pretrained(backbone).eval()
    prefix = f"{loaded.base_model_prefix}."
    found = [n.removeprefix(prefix) for n, m in loaded.named_modules() if isinstance(m, QuantModule)]
    assert sorted(found) == sorted(expected)
    assert torch.equal(output(loaded), output(automatic))
    assert random_states() == states

    # tune: everything trained has moved, everything else is in the backbone as it was
    first = lowbit.tune(backbone, tmp_path / "first", data, options=options(**EVERYTHING))
    second = lowbit.tune(backbone, tmp_path / "second", data, options=options(**LITTLE))
    assert random_states() == states
    model = lowbit.load(backbone, first.path)
    remove_adapter(model)
    off = state(model)
    for result in (first, second):
        _, tensors = read_adapter(result.path)
        assert sum(tensor.numel() for tensor in tensors.values()) == sum(result.trained.values())
        changed = [n for n, t in tensors.items() if not torch.equal(t, adapter_target(model, n))]
        assert sorted(changed) == sorted(tensors)

    # swap: A, B, A, off
    seen = []
    for result in (first, second, first):
        apply_adapter(model, result.path)
        seen.append((state(model), output(model)))
    assert same(seen[0][0], seen[2][0])
    assert torch.equal(seen[0][1], seen[2][1])
    assert not torch.equal(seen[0][1], seen[1][1])
    fresh = lowbit.load(backbone, second.path)
    assert same(seen[1][0], state(fresh))
    remove_adapter(model)
    assert same(state(model), off)

    # merge: weights and outputs bit for bit
    merged = lowbit.merge(backbone, first.path, tmp_path / "merged")
    apply_adapter(model, first.path)
    whole = lowbit.load(merged)
    assert same(float32_weights(whole), float32_weights(model))
    assert torch.equal(output(whole), output(model))
    for name, values in read_adapter(first.path)[1].items():
        if name.endswith(".outlier_value"):
            path = find_module(whole, name.removesuffix(".outlier_value"))
            tensor = whole.get_submodule(path).tensor
            assert torch.equal(tensor.dequantize().view(-1)[tensor.outlier_positions()], values.float())

    # evaluate and predict: the same numbers on both, and those that tune reported
    scores = lowbit.evaluate(merged, data)
    assert scores == lowbit.evaluate(backbone, data, adapter=first.path)
    assert scores == first.metrics
    answers = list(lowbit.predict(merged, texts_of(data)))
    for answer, other in zip(answers, lowbit.predict(backbone, texts_of(data), adapter=first.path), strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=0.03)  # folded by other values
    names = [data.label_names[label] for label in data.evaluations["dev"].labels]
    right = sum(answer["label"] == name for answer, name in zip(answers, names, strict=True))
    assert scores["dev"]["accuracy"] == pytest.approx(right / len(names))

    # nothing was changed on the way
    assert random_states() == states
    assert file_bytes(source) == before
    assert lowbit.verify(backbone).fingerprint == lowbit.verify(first.path).fingerprint


@pytest.mark.parametrize("arch", BACKBONES)
def test_an_adapter_belongs_to_its_backbone(tiny, tmp_path, arch):
    """Another recipe is another backbone, be it of the same float model."""
    other = tiny.backbone(arch, recipe="w3o2")
    for function in (
        lambda: lowbit.load(other, tiny.adapter(arch)),
        lambda: lowbit.merge(other, tiny.adapter(arch), tmp_path / "out"),
        lambda: lowbit.evaluate(other, toy_data(), adapter=tiny.adapter(arch)),
        lambda: lowbit.predict(other, ["good film"], adapter=tiny.adapter(arch)),
    ):
        with pytest.raises(AdapterError, match="was trained on the backbone"):
            function()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("class_name", [*BACKBONES.items(), ("t5", "T5EncoderModel")], ids=lambda pair: pair[1])
def test_eight_bits_are_close_and_two_bits_are_not(tiny, class_name):
    arch, class_name = class_name
    exact = output(lowbit.load(tiny.model(arch, class_name)))
    distance = {}
    for recipe in ("w8", "w2"):
        found = output(lowbit.load(tiny.backbone(arch, class_name, recipe)))
        distance[recipe] = float((found - exact).norm() / exact.norm())
    assert distance["w8"] < 0.05
    assert distance["w2"] > 5 * distance["w8"]


def test_an_encoder_alone(tiny, tmp_path):
    source = tiny.model("t5", "T5EncoderModel")
    result = lowbit.quantize(source, RECIPE, output=tmp_path / "backbone")
    assert sorted(entry.name for entry in result.plan.quantized) == sorted(["shared", *ENCODER])
    assert sorted(entry.name for entry in result.plan.entries if entry.scheme is None) == sorted(ENCODER_SKIPPED)
    model = lowbit.load(result.path)
    assert type(model).__name__ == "T5EncoderModel"
    saved = lowbit.save(model, tmp_path / "saved")
    assert (saved / "model.safetensors").read_bytes() == (result.path / "model.safetensors").read_bytes()
    assert torch.equal(output(lowbit.load(saved)), output(model))
    assert torch.equal(output(transformers.T5EncoderModel.from_pretrained(result.path).eval()), output(model))


@pytest.mark.parametrize("arch", BACKBONES)
def test_one_seed_gives_one_adapter(tiny, tmp_path, arch):
    bytes_of = []
    for index, seed in enumerate((1, 1, 2)):
        torch.rand(index)  # the caller's states play no part
        backbone = lowbit.quantize(tiny.model(arch), RECIPE, output=tmp_path / f"{index}-backbone", seed=seed).path
        adapter = lowbit.tune(backbone, tmp_path / f"{index}-adapter", toy_data(), options=options(seed=seed)).path
        bytes_of.append(file_bytes(backbone) | file_bytes(adapter))
    differ = {name for name, digest in bytes_of[0].items() if bytes_of[1][name] != digest}
    assert differ <= {"README.md"}
    assert bytes_of[0]["task_adapter.safetensors"] != bytes_of[2]["task_adapter.safetensors"]
    assert bytes_of[0]["model.safetensors"] == bytes_of[2]["model.safetensors"]  # nothing is drawn in this recipe


def test_a_backbone_is_shared_by_tasks_of_different_shape(tiny, tmp_path):
    backbone = tiny.backbone("bert")
    before = file_bytes(backbone)
    three = lowbit.tune(backbone, tmp_path / "three", toy_data(("a", "b", "c"), pairs=True), options=options())
    value = lowbit.tune(backbone, tmp_path / "value", toy_data(None), options=options())
    (answer,) = lowbit.predict(backbone, [("good", "film")], adapter=three.path)
    assert list(answer["probabilities"]) == ["a", "b", "c"]
    (answer,) = lowbit.predict(backbone, ["good film"], adapter=value.path)
    assert list(answer) == ["value"]
    assert file_bytes(backbone) == before
