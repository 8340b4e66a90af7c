import pytest
import torch
import transformers

import lowbit
from lowbit.adapter import (
    AdapterInfo,
    adapter_target,
    apply_adapter,
    load_classifier,
    model_fingerprint,
    read_adapter,
    remove_adapter,
    write_adapter,
)
from lowbit.errors import AdapterError
from tests.models import output
from tests.tiny import BACKBONES

EVERYTHING = {"scales": True, "seed": 3, "learning_rate": 0.05, "head_learning_rate": 0.05}
LITTLE = {"norms": False, "biases": False, "scales": False, "seed": 4}


@pytest.fixture
def model(tiny):
    """A BERT backbone as a classifier of two classes."""
    return classifier(tiny.backbone("bert"))


def classifier(folder, labels=("no", "yes")):
    return load_classifier(folder, labels, seed=0)[0].eval()


def state(model):
    """Bytes of every parameter and buffer."""
    return {name: value.clone().view(-1).view(torch.uint8).tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("arch", BACKBONES)
def test_every_task_class_has_the_fingerprint_that_verify_prints(tiny, arch):
    folder = tiny.backbone(arch)
    expected = lowbit.verify(folder).fingerprint
    own = getattr(transformers, BACKBONES[arch]).from_pretrained(folder)
    assert model_fingerprint(own) == model_fingerprint(classifier(folder)) == expected


def test_the_fingerprint_changes_with_every_kind_of_payload(model):
    found = {model_fingerprint(model)}
    linear = model.bert.encoder.layer[0].output.dense
    for name in ("codes", "scale", "outlier_ptr", "outlier_col", "outlier_value"):
        getattr(linear, name).view(-1).view(torch.uint8)[0] ^= 1
        found.add(model_fingerprint(model))
    model.bert.embeddings.word_embeddings.codes[0] ^= 1
    found.add(model_fingerprint(model))
    assert len(found) == 7


def test_the_fingerprint_is_of_the_quantized_weights_only(model):
    before = model_fingerprint(model)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias.add_(1)
        model.bert.embeddings.LayerNorm.weight.add_(1)
        model.classifier.weight.add_(1)
    assert model_fingerprint(model) == before


def test_a_float_model_has_no_fingerprint(tiny):
    with pytest.raises(AdapterError, match="no quantized modules; make a backbone with `lowbit quantize`"):
        model_fingerprint(classifier(tiny.model("bert")))


@pytest.mark.parametrize("arch", BACKBONES)
def test_the_values_of_the_adapter_are_in_place(tiny, arch):
    model = classifier(tiny.backbone(arch))
    before = state(model)
    info = apply_adapter(model, tiny.adapter(arch))
    expected_info, tensors = read_adapter(tiny.adapter(arch))
    assert info == expected_info
    for name, tensor in tensors.items():
        found = adapter_target(model, name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    changed = {name for name, values in state(model).items() if values != before[name]}
    trained = {name for name in before if any(name in (n, f"{model.base_model_prefix}.{n}") for n in tensors)}
    assert changed == trained


def test_swapping_there_and_back_gives_the_same_bytes(tiny, model):
    first, second = tiny.adapter("bert", **EVERYTHING), tiny.adapter("bert", **LITTLE)
    names = [set(read_adapter(folder)[1]) for folder in (first, second)]
    assert any("LayerNorm" in name for name in names[0] - names[1])
    assert any(name.endswith(".scale") for name in names[0] - names[1])
    off, off_output = state(model), output(model)
    seen = []
    for adapter in (first, second, first):
        apply_adapter(model, adapter)
        seen.append((state(model), output(model)))
    assert seen[0][0] == seen[2][0]
    assert torch.equal(seen[0][1], seen[2][1])
    assert seen[0][0] != seen[1][0]
    fresh = classifier(tiny.backbone("bert"))
    apply_adapter(fresh, second)
    assert seen[1][0] == state(fresh)  # nothing of the first adapter is left
    remove_adapter(model)
    assert state(model) == off
    assert torch.equal(output(model), off_output)


def test_applying_twice_and_removing_twice(tiny, model):
    off = state(model)
    remove_adapter(model)
    assert state(model) == off
    apply_adapter(model, tiny.adapter("bert"))
    on = state(model)
    apply_adapter(model, tiny.adapter("bert"))
    assert state(model) == on
    remove_adapter(model)
    remove_adapter(model)
    assert state(model) == off
    assert model_fingerprint(model) == lowbit.verify(tiny.backbone("bert")).fingerprint


@pytest.mark.parametrize("active", [False, True])
def test_an_adapter_of_another_backbone_is_refused(tiny, active):
    model = classifier(tiny.backbone("bert", seed=1))
    if active:
        own = tiny.adapter("bert", seed=5)
        info, tensors = read_adapter(own)
        apply_adapter(model, rewritten(tiny, "own", info, tensors, fingerprint=model_fingerprint(model)))
    before = state(model)
    here, there = (lowbit.verify(tiny.backbone("bert", seed=seed)).fingerprint[:12] for seed in (1, 0))
    with pytest.raises(
        AdapterError, match=f"was trained on the backbone {there}, this one is {here}; load the backbone"
    ):
        apply_adapter(model, tiny.adapter("bert"))
    assert state(model) == before


def test_an_adapter_of_another_task_class_is_refused(tiny):
    model = lowbit.load(tiny.backbone("bert"))
    before = state(model)
    with pytest.raises(AdapterError, match=r"trains 'classifier.\w+', which BertModel does not have"):
        apply_adapter(model, tiny.adapter("bert"))
    assert state(model) == before


def test_an_adapter_with_other_labels_is_refused(tiny):
    model = classifier(tiny.backbone("bert"), ("a", "b", "c"))
    before = state(model)
    with pytest.raises(AdapterError, match=r"'classifier.bias' is \[2\], the model has \[3\]; check the labels"):
        apply_adapter(model, tiny.adapter("bert"))
    assert state(model) == before


@pytest.mark.parametrize(
    "name", ["classifier.absent", "absent.weight", "encoder", "encoder.layer.0.output.dense.shape", ""]
)
def test_a_target_must_be_a_tensor_of_the_model(model, name):
    with pytest.raises(AdapterError, match=f"trains '{name}', which BertForSequenceClassification does not have"):
        adapter_target(model, name)


def test_targets_are_found_in_base_model_and_head(model):
    assert adapter_target(model, "classifier.weight") is model.classifier.weight
    assert adapter_target(model, "pooler.dense.bias") is model.bert.pooler.dense.bias
    linear = model.bert.encoder.layer[1].output.dense
    assert adapter_target(model, "encoder.layer.1.output.dense.outlier_value") is linear.outlier_value


def rewritten(tiny, name, info, tensors, **changes):
    """The same adapter with other fields."""
    folder = tiny.adapter("bert").parent / f"rewritten-{name}"
    return write_adapter(folder, AdapterInfo(**(info.to_dict() | {"metrics": info.metrics} | changes)), tensors)
