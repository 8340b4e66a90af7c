from contextlib import nullcontext

import pytest
import torch

from lowbit.adapter import adapter_target, load_classifier
from lowbit.errors import AdapterError
from lowbit.nn import QuantModule
from lowbit.tuning import activations_remade, finish, prepare
from lowbit.tuning.prepare import linear_weights
from tests.models import output, tiny_batch
from tests.tiny import BACKBONES

LINEARS = [
    f"encoder.layer.{layer}.{name}"
    for layer in (0, 1)
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
NORMS = ["embeddings.LayerNorm"] + [
    f"encoder.layer.{layer}.{name}" for layer in (0, 1) for name in ("attention.output.LayerNorm", "output.LayerNorm")
]
BERT = {
    "outliers": [f"{name}.outlier_value" for name in LINEARS],
    "norms": [f"{name}.{part}" for name in NORMS for part in ("weight", "bias")],
    "biases": [f"{name}.bias" for name in LINEARS],
    "scales": [f"{name}.scale" for name in LINEARS],
    "head": ["pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"],
}


def classifier(folder):
    return load_classifier(folder, ("no", "yes"), seed=0)[0]


def trainable(model):
    prefix = f"{model.base_model_prefix}."
    return sorted(name.removeprefix(prefix) for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("scales", [True, False])
def test_exactly_these_parameters_of_bert_are_trained(tiny, norms, biases, scales):
    model = classifier(tiny.backbone("bert"))
    assert len(trainable(model)) > 0  # transformers marks every float parameter
    groups = prepare(model, norms=norms, biases=biases, scales=scales)
    chosen = {"outliers": True, "norms": norms, "biases": biases, "scales": scales, "head": True}
    assert groups == {group: BERT[group] if chosen[group] else [] for group in BERT}
    assert trainable(model) == sorted(name for names in groups.values() for name in names)


def test_the_defaults_train_everything(tiny):
    groups = prepare(classifier(tiny.backbone("bert")))
    assert [group for group, names in groups.items() if names] == ["outliers", "norms", "biases", "scales", "head"]


COUNTS = {  # block linears, norms (with their number of parameters), biases, head parameters
    "bert": (12, 10, 12, ["pooler.dense", "classifier"]),
    "roberta": (12, 10, 12, ["classifier.dense", "classifier.out_proj"]),
    "t5": (32, 12, 0, ["classification_head.dense", "classification_head.out_proj"]),
    "opt": (12, 10, 12, ["score"]),
    "gpt2": (8, 10, 8, ["score"]),
}


@pytest.mark.parametrize("arch", BACKBONES)
def test_every_architecture_has_its_groups(tiny, arch):
    linears, norms, biases, heads = COUNTS[arch]
    model = classifier(tiny.backbone(arch))
    groups = prepare(model, scales=True)
    assert {group: len(names) for group, names in groups.items() if group != "head"} == {
        "outliers": linears,
        "norms": norms,
        "biases": biases,
        "scales": linears,
    }
    assert sorted({name.rpartition(".")[0] for name in groups["head"]}) == sorted(heads)
    assert all("norm" in name.lower() or "ln_" in name for name in groups["norms"])
    assert trainable(model) == sorted(name for names in groups.values() for name in names)
    for names in groups.values():
        for name in names:
            assert adapter_target(model, name).dtype == torch.float32


def test_a_pooler_counts_as_head_even_where_it_is_fresh(tiny):
    groups = prepare(classifier(tiny.backbone("bert", "BertForMaskedLM")))
    assert groups["head"] == BERT["head"]


def test_only_modules_with_outliers_have_some(tiny):
    recipe = {"scheme": "w4o2", "overrides": [{"match": "encoder.layer.0.*", "scheme": "w4o0"}]}
    groups = prepare(classifier(tiny.backbone("bert", recipe=recipe)), scales=True)
    assert groups["outliers"] == [name for name in BERT["outliers"] if "layer.1" in name]
    assert groups["scales"] == BERT["scales"]


def test_float_linears_and_embeddings_stay_frozen(tiny):
    recipe = {"scheme": "w4o2", "skip": ["encoder.layer.0.*"], "embeddings": "float"}
    model = classifier(tiny.backbone("bert", recipe=recipe))
    groups = prepare(model)
    assert groups["outliers"] == [name for name in BERT["outliers"] if "layer.1" in name]
    assert groups["biases"] == [name for name in BERT["biases"] if "layer.1" in name]
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert not model.bert.encoder.layer[0].output.dense.weight.requires_grad


@pytest.mark.parametrize("kind", ["no outliers", "float"])
def test_a_model_without_outliers_is_refused_and_left_alone(tiny, kind):
    model = classifier(tiny.model("bert") if kind == "float" else tiny.backbone("bert", recipe="w4o0"))
    before = trainable(model)
    with pytest.raises(AdapterError, match="no outliers to tune; quantize it with some, as in --scheme w4"):
        prepare(model)
    assert trainable(model) == before


@pytest.mark.parametrize("recipe", ["w4o2", "w4g16o2"])
def test_finish_turns_payloads_back(tiny, recipe):
    model = classifier(tiny.backbone("bert", recipe=recipe))
    model.eval()
    buffers = {name: (value.dtype, value.clone()) for name, value in model.named_buffers()}
    expected = output(model)
    prepare(model, scales=True)
    assert torch.equal(output(model), expected)
    finish(model)
    assert {name: value.dtype for name, value in model.named_buffers()} == {n: d for n, (d, _) in buffers.items()}
    assert all(torch.equal(value, buffers[name][1]) for name, value in model.named_buffers())
    for module in model.modules():
        if isinstance(module, QuantModule):
            assert set(module._parameters) <= {"bias"}
    assert torch.equal(output(model), expected)
    finish(model)  # nothing left to do


def test_finish_rounds_trained_values_to_the_stored_dtype(tiny):
    model = classifier(tiny.backbone("bert"))
    prepare(model, scales=True)
    linear = model.bert.encoder.layer[1].output.dense
    with torch.no_grad():
        linear.outlier_value.fill_(1 / 3)
        linear.scale.fill_(1 / 3)
    finish(model)
    assert linear.outlier_value.dtype == torch.float16
    assert linear.outlier_value[0] == torch.tensor(1 / 3).half()
    assert linear.scale.dtype == torch.float32
    assert linear.scale[0, 0] == torch.tensor(1 / 3)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("bert", 2 * (4 * 32 * 32 + 2 * 32 * 48)),
        ("roberta", 2 * (4 * 32 * 32 + 2 * 32 * 48)),
        ("t5", 2 * (12 * 32 * 32 + 4 * 32 * 48)),
        ("opt", 2 * (4 * 32 * 32 + 2 * 32 * 48)),
        ("gpt2", 2 * (4 * 32 * 32 + 2 * 32 * 128)),
    ],
)
def test_linear_weights_are_the_same_for_float_and_quantized(tiny, arch, expected):
    assert linear_weights(classifier(tiny.backbone(arch))) == expected
    assert linear_weights(classifier(tiny.model(arch))) == expected


def test_inputs_behind_gelu_are_made_again_with_the_same_gradients(tiny):
    model = classifier(tiny.backbone("bert"))
    prepare(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    width, storages, results = model.config.intermediate_size, set(), []

    def note(tensor):
        if tensor.dim() > 1 and tensor.shape[-1] == width:
            storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    for block, kept in ((nullcontext(), 4), (activations_remade(model), 2)):
        storages.clear()
        with block, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(**tiny_batch(model.config)).logits.square().sum()
        assert len(storages) == kept
        results.append(torch.autograd.grad(loss, trained))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
