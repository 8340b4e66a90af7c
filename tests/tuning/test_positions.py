import copy

import pytest
import torch
from transformers import DataCollatorWithPadding

import lowbit
from lowbit.adapter import load_classifier
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.nn import QuantLinear
from lowbit.qtensor import quantize_tensor
from lowbit.scheme import OutlierRule, Scheme
from lowbit.tuning.positions import choose_positions, dense_gradients
from tests.tiny import BACKBONES, toy_rows


def linears():
    generator = torch.Generator().manual_seed(0)
    scheme = Scheme(bits=2, outliers=OutlierRule(share=0.1))
    return {
        name: QuantLinear(quantize_tensor(torch.randn(shape, generator=generator), scheme))
        for name, shape in {"a": (6, 16), "b": (10, 16)}.items()
    }


def choose(rule, counts, seed=0, gradients=None):
    return choose_positions(linears(), rule, counts, seed, gradients or {})


def test_a_short_budget_takes_the_outliers_that_lie_furthest_from_the_grid():
    found = choose("backbone", {"a": 3, "b": 100})
    modules = linears()
    assert torch.equal(found["b"], modules["b"].tensor.outlier_positions())
    tensor = modules["a"].tensor
    own = tensor.outlier_positions()
    distance = (tensor.outlier_value.float() - tensor.dequantize_dense().flatten()[own]).abs()
    assert set(found["a"].tolist()) == set(own[distance.argsort(descending=True)[:3]].tolist())


def test_random_positions_are_distinct_and_drawn_with_the_seed():
    found = choose("random", {"a": 20, "b": 30})
    assert [len(set(found[name].tolist())) for name in found] == [20, 30]
    assert all(torch.equal(values, values.sort().values) for values in found.values())
    assert all(torch.equal(found[name], choose("random", {"a": 20, "b": 30})[name]) for name in found)
    assert not torch.equal(found["a"], choose("random", {"a": 20, "b": 30}, seed=1)["a"])


def test_gradients_choose_and_a_mix_takes_half_of_each():
    generator = torch.Generator().manual_seed(1)
    gradients = {name: torch.rand(module.shape, generator=generator) for name, module in linears().items()}
    counts = {"a": 8, "b": 6}
    found = choose("gradient", counts, gradients=gradients)
    for name, gradient in gradients.items():
        assert set(found[name].tolist()) == set(gradient.flatten().topk(counts[name]).indices.tolist())
    mixed = choose("mix", counts, gradients=gradients)
    half = choose("backbone", {name: count // 2 for name, count in counts.items()})
    for name in counts:
        assert set(half[name].tolist()) < set(mixed[name].tolist())
        assert mixed[name].numel() == counts[name]
        rest = [p for p in gradients[name].flatten().argsort(descending=True).tolist() if p not in half[name]]
        assert set(mixed[name].tolist()) - set(half[name].tolist()) == set(rest[: counts[name] - half[name].numel()])


@pytest.mark.parametrize("arch", BACKBONES)
def test_dense_gradients_are_those_of_the_weights(tiny, arch):
    folder = tiny.backbone(arch)
    model, _ = load_classifier(folder, ("no", "yes"), seed=0, dtype=torch.float32)
    tokenizer = load_tokenizer(folder)
    batch = DataCollatorWithPadding(tokenizer)(encode(toy_rows(), tokenizer, 16)[:4])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = dense_gradients(model, batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.keys() == {name for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    name = max(found, key=lambda path: float(found[path].max()))
    module, step = model.get_submodule(name), 1e-3
    place = int(found[name].argmax())
    losses = []
    for sign in (1, -1):
        changed = copy.deepcopy(model).eval()
        weight = module.weight.flatten()
        weight[place] += sign * step
        dense = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        dense.load_state_dict(
            {"weight": weight.view(module.shape)} | ({"bias": module.bias} if module.bias is not None else {})
        )
        changed.set_submodule(name, dense)
        with torch.no_grad():
            losses.append(float(changed(**batch).loss.double()))
    assert abs(losses[0] - losses[1]) / (2 * step) == pytest.approx(float(found[name].max()), rel=0.05)


def test_nothing_is_left_hooked(tiny):
    model = lowbit.load(tiny.backbone("bert", "BertForSequenceClassification"))
    tokenizer = load_tokenizer(tiny.backbone("bert"))
    batch = DataCollatorWithPadding(tokenizer)(encode(toy_rows(), tokenizer, 16)[:4])
    dense_gradients(model, batch)
    assert not any(module._forward_hooks for module in model.modules())
    assert not model.training
