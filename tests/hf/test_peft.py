"""Quantized linears under the library peft."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import lowbit
from lowbit.adapter import load_classifier
from lowbit.errors import AdapterError, CheckpointError, MissingExtraError
from lowbit.hf.peft import (
    QuantLoraLinear,
    add_factors,
    factor_config,
    factor_tensors,
    factors,
    factors_aside,
    for_quantized,
    remove_factors,
    split_tensors,
)
from lowbit.nn import QuantLinear
from tests.models import output
from tests.tiny import options, toy_data

ARCHITECTURES = ["bert", "t5", "gpt2"]


def classifier(tiny, arch="bert", **settings):
    return load_classifier(tiny.backbone(arch), ("no", "yes"), seed=0, **settings)[0].eval()


def linears(model):
    return [path for path, module in model.named_modules() if isinstance(module, QuantLinear)]


def adapted(model, rank=4, heads=()):
    """Factors with a product other than 0 beside every quantized linear."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_factors(model, rank, linears(model), heads)
        for _, up in factors(model).values():
            up.data.normal_()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_product_of_the_factors_is_added(tiny, arch, dtype):
    model = adapted(classifier(tiny, arch))
    for path, (down, up) in factors(model).items():
        module = model.get_submodule(path)
        assert (down.shape, up.shape) == ((4, module.in_features), (module.out_features, 4))
        x = torch.randn(2, 3, module.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
        found = module(x)
        bias = 0 if module.bias is None else module.bias
        expected = x.float() @ (module.base_layer.weight + up @ down).t() + bias
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()


def test_gradients_reach_factors_and_input_and_nothing_else(tiny):
    model = adapted(classifier(tiny))
    path, (down, up) = next(iter(factors(model).items()))
    module = model.get_submodule(path)
    x = torch.randn(5, module.in_features, requires_grad=True)
    module(x).square().sum().backward()
    dense = [tensor.detach().clone().requires_grad_() for tensor in (x, down, up)]
    (dense[0] @ (module.base_layer.weight + dense[2] @ dense[1]).t() + module.bias.detach()).square().sum().backward()
    for tensor, reference in zip((x, down, up), dense, strict=True):
        assert torch.allclose(tensor.grad, reference.grad, rtol=1e-3, atol=1e-3)
    assert module.bias.grad is None
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 2 * len(factors(model))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_without_factors_the_model_is_as_before(tiny, arch):
    model, plain = classifier(tiny, arch), classifier(tiny, arch)
    head = "score" if arch == "gpt2" else "classifier" if arch == "bert" else "classification_head.dense"
    adapted(model, heads=[head])
    for wrapper in (module for module in model.modules() if hasattr(module, "original_module")):
        wrapper.modules_to_save["default"].weight.data.zero_()
    changed = output(model)
    assert not torch.equal(changed, output(plain))
    with factors_aside(model):
        assert torch.equal(output(model), output(plain))
    assert torch.equal(output(model), changed)
    remove_factors(model)
    assert torch.equal(output(model), output(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not hasattr(model, "peft_config")


def test_any_configuration_of_peft_adapts_quantized_linears(tiny):
    config = LoraConfig(r=2, lora_alpha=6, lora_dropout=0.5, target_modules=["query", "value"])
    model = get_peft_model(classifier(tiny), for_quantized(config))
    layers = [module for module in model.modules() if isinstance(module, QuantLoraLinear)]
    assert len(layers) == 4
    assert [layer.scaling["default"] for layer in layers] == [3] * 4
    x = torch.randn(64, 32)
    layers[0].lora_B["default"].weight.data.normal_()
    assert not torch.equal(layers[0].train()(x), layers[0](x))
    assert torch.equal(layers[0].eval()(x), layers[0](x))
    with model.disable_adapter():
        assert torch.equal(layers[0](x), layers[0].base_layer(x))


def test_merging_is_refused(tiny):
    model = get_peft_model(classifier(tiny), for_quantized(LoraConfig(target_modules=["query"])))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(AdapterError, match="cannot be merged into a quantized weight"):
            merge()


def test_what_would_change_the_quantized_weight_is_refused(tiny):
    config = for_quantized(LoraConfig(target_modules=["query"], init_lora_weights="pissa"))
    with pytest.raises(AdapterError, match="initialising by 'pissa' changes the weight below"):
        get_peft_model(classifier(tiny), config)


def test_a_model_with_factors_is_no_backbone(tiny, tmp_path):
    model = adapted(classifier(tiny))
    for save in (lowbit.save, type(model).save_pretrained):
        with pytest.raises(CheckpointError, match="low-rank factors on it, which a backbone cannot hold"):
            save(model, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_peft_reads_the_adapter_by_itself(tiny, tmp_path, arch):
    chosen = options(rank=4, learning_rate=0.05, head_learning_rate=0.02)
    path = lowbit.tune(tiny.backbone(arch), tmp_path / "out", toy_data(), method="lora", options=chosen).path
    config = LoraConfig.from_pretrained(path)
    model = PeftModel.from_pretrained(classifier(tiny, arch), path, config=for_quantized(config))
    assert torch.equal(output(model.base_model.model.eval()), output(lowbit.load(tiny.backbone(arch), path)))
    values = json.loads((path / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["base_model_name_or_path"]) == (4, 4, None)
    assert values["target_modules"] == sorted(values["target_modules"])
    assert str(tmp_path) not in json.dumps(values)


def test_names_in_the_file_are_split_into_pairs_and_the_rest(tiny):
    model = adapted(classifier(tiny), heads=["classifier"])
    tensors = factor_tensors(model)
    pairs, rest = split_tensors(tensors)
    assert list(pairs) == list(factors(model))
    assert set(rest) == {"classifier.weight", "classifier.bias"}
    tensors.pop(next(name for name in tensors if name.endswith("lora_B.weight")))
    with pytest.raises(AdapterError, match=r"one of two factors for 'bert\.encoder"):
        split_tensors(tensors)


def test_the_configuration_names_the_backbone_on_the_hub(tiny):
    model = adapted(classifier(tiny))
    assert json.loads(factor_config(model, "me/backbone"))["base_model_name_or_path"] == "me/backbone"


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.delitem(sys.modules, "lowbit.hf.peft")
    with pytest.raises(MissingExtraError, match=r"pip install 'lowbit\[peft\]'"):
        import lowbit.hf.peft  # noqa: F401
