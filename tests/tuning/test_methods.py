"""The baselines: what each trains, that it learns, and that its result is stored and loaded as it was trained."""

import pytest
import torch

import lowbit
from lowbit.adapter import apply_adapter, read_adapter, remove_adapter
from lowbit.errors import AdapterError, SchemeError
from lowbit.nn import SPARSE, QuantLinear
from lowbit.tuning import METHODS
from tests.tiny import options, toy_data

WEIGHTS = 8 * 1024 + 4 * 1536  # of the block linears
OUTLIERS = 2 * (4 * 20 + 2 * 31)
ROWS = 2 * (5 * 32 + 48)
BESIDE = {"norms": 5 * 64, "biases": ROWS, "scales": ROWS}
HEAD = 33 * 32 + 33 * 2


def tune(tiny, output, method="outliers", **changes):
    return lowbit.tune(tiny.backbone("bert"), output, toy_data(), method=method, options=options(**changes))


def payload(model):
    return {n: b.clone() for n, b in model.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("random", {"outliers": OUTLIERS, **BESIDE}),
        ("scales", {"outliers": 0, "norms": 0, "biases": 0, "scales": ROWS}),
        ("bitfit", {"outliers": 0, "norms": 0, "biases": ROWS, "scales": 0}),
    ],
)
def test_each_method_trains_its_own_values(tiny, tmp_path, method, trained):
    result = tune(tiny, tmp_path / "out", method, learning_rate=0.05)
    assert result.trained == {**trained, "head": HEAD}
    assert result.trained_share == pytest.approx(sum(trained.values()) / WEIGHTS)
    plain = lowbit.load(tiny.backbone("bert"))
    tuned = lowbit.load(tiny.backbone("bert"), result.path)
    parts = {name.rpartition(".")[2] for name in read_adapter(result.path)[1] if ".layer." in name}
    assert (
        parts
        == {
            "random": {*SPARSE, "bias", "scale", "weight"},
            "scales": {"scale"},
            "bitfit": {"bias"},
        }[method]
    )
    name = "encoder.layer.0.output.dense"
    before, after = plain.get_submodule(name), tuned.bert.get_submodule(name)
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.scale, after.scale) == (method == "bitfit")
    assert torch.equal(before.weight, after.weight) == (method == "bitfit")
    assert not torch.equal(before.bias, after.bias) or method == "scales"


@pytest.mark.parametrize(("recipe", "expected"), [("w2o2", ROWS), ("w4o2", ROWS), ("w5o2", 0), ("w8o2", 0)])
def test_step_sizes_of_few_bits_are_trained(tiny, tmp_path, recipe, expected):
    result = lowbit.tune(tiny.backbone("bert", recipe=recipe), tmp_path / "out", toy_data(), options=options())
    assert result.trained["scales"] == expected
    chosen = read_adapter(result.path)[0].options
    assert chosen["scales"] == (expected > 0)
    assert chosen["learning_rates"][-1] == (1e-2 if recipe == "w2o2" else 3e-3)


@pytest.mark.parametrize(("method", "positions"), [("random", "backbone"), ("outliers", "random")])
def test_weights_that_are_no_outliers_move_further(tiny, tmp_path, method, positions):
    chosen = options(positions=positions)
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), method=method, options=chosen)
    assert read_adapter(result.path)[0].options["learning_rates"][-1] == 1e-2


@pytest.mark.parametrize("bits", [2, 4])
def test_step_sizes_alone_move_by_a_part_of_their_mean(tiny, tmp_path, bits):
    backbone = tiny.backbone("bert", recipe=f"w{bits}o2")
    result = lowbit.tune(backbone, tmp_path / "out", toy_data(), method="scales", options=options())
    steps = [module.scale.mean() for module in lowbit.load(backbone).modules() if isinstance(module, QuantLinear)]
    expected = sorted((1.5e-2 * float(torch.stack(steps).mean()), 5e-4))
    assert read_adapter(result.path)[0].options["learning_rates"] == pytest.approx(expected)


def test_biases_alone_move_further_than_the_head(tiny, tmp_path):
    assert read_adapter(tune(tiny, tmp_path / "out", "bitfit").path)[0].options["learning_rates"] == [5e-4, 3e-3]


def test_random_positions_are_drawn_with_the_seed(tiny, tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        tensors = read_adapter(tune(tiny, tmp_path / str(number), "random", seed=seed).path)[1]
        found.append(tensors["encoder.layer.0.output.dense.outlier_col"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("rule", ["random", "gradient", "mix"])
def test_only_the_chosen_positions_move(tiny, tmp_path, rule):
    result = tune(tiny, tmp_path / "out", positions=rule, scales=False, learning_rate=0.05)
    assert result.trained["outliers"] == OUTLIERS
    plain = lowbit.load(tiny.backbone("bert"))
    tuned = lowbit.load(tiny.backbone("bert"), result.path)
    tensors = read_adapter(result.path)[1]
    linears = [name for name, module in plain.named_modules() if isinstance(module, QuantLinear)]
    for name in linears:
        before, after = plain.get_submodule(name), tuned.bert.get_submodule(name)
        count = tensors[f"{name}.outlier_value"].numel()
        moved = (before.weight != after.weight).flatten().nonzero().view(-1)
        own = before.tensor.outlier_positions()
        assert 0 < moved.numel() <= count == own.numel()
        union = after.tensor.outlier_positions()
        assert torch.isin(moved, union).all()
        assert union.numel() == torch.cat([own, moved]).unique().numel()  # each chosen value has moved
        assert not torch.equal(union, own)


def test_a_backbone_is_as_before_after_an_adapter_with_positions(tiny, tmp_path):
    first = tune(tiny, tmp_path / "first", "random", learning_rate=0.05).path
    second = tune(tiny, tmp_path / "second", learning_rate=0.05).path
    model = lowbit.load(tiny.backbone("bert"), first)
    with_first = payload(model)
    apply_adapter(model, second)
    with_second = payload(model)
    remove_adapter(model)
    plain = payload(model)
    reference = lowbit.load(tiny.backbone("bert"), second)
    assert payload(reference).keys() == with_second.keys()
    assert all(torch.equal(value, with_second[name]) for name, value in payload(reference).items())
    backbone = lowbit.load(tiny.backbone("bert")).state_dict()
    assert all(torch.equal(value, plain[f"bert.{name}"]) for name, value in backbone.items())
    apply_adapter(model, first)
    assert all(torch.equal(value, with_first[name]) for name, value in payload(model).items())


def test_positions_are_merged_exactly(tiny, tmp_path):
    path = tune(tiny, tmp_path / "out", "random", learning_rate=0.05).path
    merged = lowbit.load(lowbit.merge(tiny.backbone("bert"), path, tmp_path / "merged"))
    adapted = lowbit.load(tiny.backbone("bert"), path)
    for name, module in adapted.named_modules():
        if isinstance(module, QuantLinear):
            assert torch.equal(module.weight, merged.get_submodule(name).weight)
    lowbit.verify(tmp_path / "merged")


def test_a_budget_counts_everything_but_the_head(tiny, tmp_path):
    beside = sum(BESIDE.values())
    budget = (beside + 100) / WEIGHTS
    for method in ("outliers", "random"):
        result = tune(tiny, tmp_path / method, method, budget=budget)
        assert 80 <= result.trained["outliers"] <= 100
        assert result.trained_share <= budget
    small = read_adapter(tmp_path / "outliers")[1]["encoder.layer.0.output.dense.outlier_col"]
    own = lowbit.load(tiny.backbone("bert")).get_submodule("encoder.layer.0.output.dense").outlier_col
    assert set(small.tolist()) < set(own.tolist())
    assert tune(tiny, tmp_path / "all", budget=1.0).trained["outliers"] == OUTLIERS


def test_a_budget_can_take_more_positions_than_the_backbone_has(tiny, tmp_path):
    result = tune(tiny, tmp_path / "out", "random", budget=0.2)
    assert 0.99 * 0.2 <= result.trained_share <= 0.2


@pytest.mark.parametrize(
    ("method", "shares"),
    [("outliers", "norms 2.23 %, biases 2.90 %, scales 2.90 %"), ("scales", "scales 2.90 %"), ("bitfit", "biases")],
)
def test_a_budget_that_is_too_small_is_refused(tiny, tmp_path, method, shares):
    with pytest.raises(AdapterError, match=f"a budget of 0.5 % of the weights is too small for {shares}"):
        tune(tiny, tmp_path / "out", method, budget=0.005)
    assert list(tmp_path.iterdir()) == []


def test_values_can_start_from_the_grid(tiny, tmp_path):
    result = tune(tiny, tmp_path / "out", initial="decoded", scales=False, learning_rate=1e-8)
    module = lowbit.load(tiny.backbone("bert"), result.path).bert.get_submodule("encoder.layer.0.output.dense")
    decoded = module.tensor.dequantize_dense()
    assert torch.allclose(module.weight, decoded, atol=1e-3)
    stored = lowbit.load(tiny.backbone("bert")).get_submodule("encoder.layer.0.output.dense")
    assert not torch.allclose(stored.weight, decoded, atol=1e-3)


def test_rates_go_by_the_step_sizes(tiny, monkeypatch, tmp_path):
    from lowbit.tuning import trainer

    rates = []
    original = trainer.train

    def train(model, features, groups, *rest, **settings):
        rates.extend(group["lr"] for group in groups)
        return original(model, features, groups, *rest, **settings)

    monkeypatch.setattr(trainer, "train", train)
    tune(tiny, tmp_path / "out", rate_by_step=True, scales=False, learning_rate=1e-3)
    linears = [m for m in lowbit.load(tiny.backbone("bert")).modules() if isinstance(m, QuantLinear)]
    steps = torch.stack([module.scale.mean() for module in linears])
    assert rates[:-1] == pytest.approx((1e-3 * steps / steps.mean()).tolist())
    assert len(set(rates)) > 2


def test_every_method_learns(tiny, tmp_path):
    import dataclasses

    data = dataclasses.replace(toy_data(), evaluations={"train": toy_data().train})
    for method in METHODS:
        start, needed = tiny.start(method, "gpt2")
        rates = {"learning_rate": 3e-3}
        if METHODS[method].from_backbone:
            rates = {"learning_rate": 0.02, "head_learning_rate": 0.02}
        chosen = options(epochs=10, **rates, **needed)
        assert lowbit.tune(start, tmp_path / method, data, method=method, options=chosen).score > 0.8, method


@pytest.mark.parametrize("changes", [{}, {"scales": False}, {"positions": "random"}])
def test_a_cache_changes_no_byte(tiny, tmp_path, changes):
    tensors = {}
    for cache in ("none", "fp32"):
        result = tune(tiny, tmp_path / cache, cache=cache, learning_rate=0.05, **changes)
        tensors[cache] = read_adapter(result.path)[1]
    assert tensors["none"].keys() == tensors["fp32"].keys()
    for name, tensor in tensors["none"].items():
        assert torch.equal(tensor, tensors["fp32"][name]), name


def test_a_cache_is_in_the_precision_of_the_run(tiny, tmp_path):
    with pytest.raises(SchemeError, match="a bf16 cache belongs to a bf16 run"):
        tune(tiny, tmp_path / "out", cache="bf16")


def test_checkpointing_changes_memory_only(tiny, tmp_path):
    found = {}
    for checkpointing in (False, True):
        result = tune(tiny, tmp_path / str(checkpointing), checkpointing=checkpointing, learning_rate=0.05)
        found[checkpointing] = read_adapter(result.path)[1]
    for name, tensor in found[False].items():
        assert torch.allclose(tensor.float(), found[True][name].float(), atol=1e-6), name


@pytest.mark.parametrize(
    ("method", "changes", "flag"),
    [
        ("full", {"budget": 0.01}, "--budget"),
        ("ptq", {"cache": "fp32"}, "--cache"),
        ("qat", {"head_learning_rate": 1e-3}, "--head-learning-rate"),
        ("scales", {"positions": "mix"}, "--positions"),
        ("random", {"positions": "gradient"}, "--positions"),
        ("bitfit", {"rate_by_step": True}, "--rate-by-step"),
        ("lora", {"norms": False}, "--norms"),
        ("outliers", {"rank": 4}, "--rank"),
        ("lora", {"float_model": "somewhere"}, "--float-model"),
    ],
)
def test_an_option_that_a_method_has_no_use_for_is_refused(tiny, tmp_path, method, changes, flag):
    start, _ = tiny.start(method)
    with pytest.raises(SchemeError, match=f"the method '{method}' has no use for {flag}; leave it out"):
        lowbit.tune(start, tmp_path / "out", toy_data(), method=method, options=options(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["outliers", "random"])
def test_a_matrix_without_outliers_is_left_alone(tiny, tmp_path, method):
    override = {"match": "encoder.layer.0.output.dense", "scheme": "w4o0"}
    backbone = tiny.backbone("bert", recipe={"scheme": "w4o2", "overrides": [override]})
    chosen = options(learning_rate=0.05, rate_by_step=True, scales=False)
    result = lowbit.tune(backbone, tmp_path / "out", toy_data(), method=method, options=chosen)
    assert result.trained["outliers"] == OUTLIERS - 31
    plain, tuned = lowbit.load(backbone), lowbit.load(backbone, result.path).bert
    for name, same in ((override["match"], True), ("encoder.layer.1.output.dense", False)):
        assert torch.equal(plain.get_submodule(name).weight, tuned.get_submodule(name).weight) == same


def test_a_budget_that_is_spent_to_the_last_value_trains_no_outliers(tiny, tmp_path):
    budget = (BESIDE["norms"] + BESIDE["biases"] + 0.5) / WEIGHTS
    result = tune(tiny, tmp_path / "out", budget=budget, scales=False, learning_rate=0.05)
    assert result.trained["outliers"] == 0
    before, after = lowbit.load(tiny.backbone("bert")), lowbit.load(tiny.backbone("bert"), result.path).bert
    name = "encoder.layer.0.output.dense"
    assert torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)


def test_a_model_without_biases_has_none_to_train(tiny, tmp_path):
    with pytest.raises(AdapterError, match="the model has no biases to train; choose another method"):
        lowbit.tune(tiny.backbone("t5"), tmp_path / "out", toy_data(), method="bitfit", options=options())


def test_an_adapter_names_its_method_and_no_folder_of_the_machine(tiny, tmp_path):
    teacher = lowbit.tune(tiny.model("bert"), tmp_path / "teacher", toy_data(), method="full", options=options()).path
    result = tune(tiny, tmp_path / "out", "random", teacher=teacher)
    text = (result.path / "task_adapter.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert '"method": "random"' in text
    assert '"positions": "random"' in text
