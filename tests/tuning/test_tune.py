import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit.adapter import AdapterInfo, adapter_target, load_classifier, read_adapter, read_info, write_adapter
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.errors import DataError
from lowbit.nn import QuantLinear, QuantModule
from lowbit.scoring import score_model
from lowbit.tuning import METHODS, prepare, trainer
from lowbit.tuning.methods import sparse
from tests.models import file_bytes
from tests.tiny import BACKBONES, options, random_states, toy_data


@pytest.fixture
def spies(monkeypatch):
    """What ``tune`` hands to ``train``, and the model that it writes the adapter from."""
    found = {}
    original_train, original_write = trainer.train, write_adapter

    def train(model, features, groups, *rest, **settings):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found["groups"] = [([names[id(p)] for p in group["params"]], group["lr"]) for group in groups]
        found["trainable"] = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        found["model"], found["features"] = model, features
        return original_train(model, features, groups, *rest, **settings)

    def write(output, info, tensors):
        found["written"] = {name: tensor.clone() for name, tensor in tensors.items()}
        return original_write(output, info, tensors)

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(sparse, "write_adapter", write)
    return found


def test_the_result_says_what_was_done(tiny, tmp_path):
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(scales=True))
    assert (result.path, result.method, result.task, result.metric) == (tmp_path / "out", "outliers", "toy", "accuracy")
    assert result.score == result.metrics["dev"]["accuracy"]
    counts = {"norms": 5 * 64, "biases": 2 * (5 * 32 + 48), "scales": 2 * (5 * 32 + 48), "head": 33 * 32 + 33 * 2}
    assert {group: count for group, count in result.trained.items() if group != "outliers"} == counts
    assert result.trained["outliers"] == 2 * (4 * 20 + 2 * 31)  # 2 % of 1,024 and of 1,536
    share = sum(count for group, count in result.trained.items() if group != "head") / (8 * 1024 + 4 * 1536)
    assert result.trained_share == pytest.approx(share)
    assert (result.rows, result.steps) == (24, 3)
    assert 0 < result.seconds < 60
    json.dumps(result.to_dict())


def test_the_adapter_says_what_it_is_for(tiny):
    info = read_info(tiny.adapter("bert", scales=True))
    linears = [module for module in lowbit.load(tiny.backbone("bert")).modules() if isinstance(module, QuantLinear)]
    steps = {1.5e-3 * float(module.scale.float().mean()) for module in linears}
    assert info == AdapterInfo(
        fingerprint=lowbit.verify(tiny.backbone("bert")).fingerprint,
        task="toy",
        metrics=("accuracy",),
        primary="accuracy",
        label_names=("no", "yes"),
        max_length=16,
        trained=info.trained,
        options={
            "method": "outliers",
            **options(scales=True, dropout=0.0).to_dict(),
            "learning_rates": sorted({5e-4, 3e-3, *steps}),
        },
        scores=info.scores,
    )


@pytest.mark.parametrize(
    "switches", [{}, {"scales": False}, {"norms": False, "biases": False}], ids=["default", "few", "little"]
)
def test_the_adapter_holds_what_was_trained_and_nothing_else(tiny, switches):
    model, _ = load_classifier(tiny.backbone("bert"), ("no", "yes"), seed=0)
    groups = prepare(model, **switches)
    stored = load_file(tiny.adapter("bert", **switches) / "task_adapter.safetensors")
    assert set(stored) == {name for names in groups.values() for name in names}
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.float16 if name.endswith("outlier_value") else torch.float32)
    assert read_info(tiny.adapter("bert", **switches)).trained == {
        group: sum(stored[name].numel() for name in names) for group, names in groups.items()
    }


@pytest.mark.parametrize("arch", BACKBONES)
def test_everything_that_is_trained_moves(tiny, arch):
    """Gradients reach the outliers of every block linear, both towers of T5 included."""
    model, _ = load_classifier(tiny.backbone(arch), ("no", "yes"), seed=0)
    _, tensors = read_adapter(tiny.adapter(arch, scales=True, learning_rate=0.05, head_learning_rate=0.01))
    still = [name for name, tensor in tensors.items() if torch.equal(adapter_target(model, name), tensor)]
    assert still == []
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("switches", [{}, {"scales": False}, {"norms": False, "biases": False}])
def test_everything_else_is_frozen_and_stays_as_it_was(tiny, tmp_path, spies, switches):
    before, _ = load_classifier(tiny.backbone("bert"), ("no", "yes"), seed=0)
    lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(**switches))
    trained = {name for names, _ in spies["groups"] for name in names}
    assert spies["trainable"] == trained
    after = spies["model"].state_dict()
    assert set(after) == set(before.state_dict())
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert changed == trained
    assert all(after[name].dtype == value.dtype for name, value in before.state_dict().items())


def test_no_payload_stays_promoted(tiny, tmp_path, spies):
    lowbit.tune(tiny.backbone("t5"), tmp_path / "out", toy_data(), options=options(scales=True))
    for module in spies["model"].modules():
        if isinstance(module, QuantModule):
            assert set(module._parameters) <= {"bias"}
            assert module.outlier_value is None or module.outlier_value.dtype == torch.float16
            assert not module.scale.requires_grad


@pytest.mark.parametrize(
    ("rates", "expected"), [({}, [3e-3, 5e-4]), ({"learning_rate": 0.3, "head_learning_rate": 0.2}, [0.3, 0.2])]
)
def test_outliers_step_sizes_and_the_rest_have_their_own_learning_rates(tiny, tmp_path, spies, rates, expected):
    lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(**rates))
    (outliers, first), *scales, (rest, last) = spies["groups"]
    assert [first, last] == expected
    assert {name.rpartition(".")[2] for name in outliers} == {"outlier_value"}
    assert {name.rpartition(".")[2] for name in rest} == {"weight", "bias"}
    steps = load_classifier(tiny.backbone("bert"), ("no", "yes"), seed=0)[0].state_dict()
    assert len(scales) == len(outliers)
    for (name,), rate in scales:
        assert name.endswith(".scale")
        assert rate == pytest.approx(1.5e-3 * float(steps[name].mean()))


@pytest.mark.parametrize(("rate", "expected"), [(None, 5e-5), (1e-3, 1e-3)])
def test_the_other_methods_train_everything_at_one_rate(tiny, tmp_path, spies, rate, expected):
    result = lowbit.tune(
        tiny.model("bert"), tmp_path / "out", toy_data(), method="full", options=options(learning_rate=rate)
    )
    ((names, found),) = spies["groups"]
    assert found == expected
    assert set(names) == spies["trainable"] == {name for name, _ in spies["model"].named_parameters()}
    assert result.trained == {"all": spies["model"].num_parameters()}
    assert result.trained_share == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_score_is_that_of_the_result_on_disk(tiny, tmp_path, spies, method):
    """Of a checkpoint in half precision: trained in float32, it is another model once it is stored."""
    base, needed = tiny.start(method, dtype=torch.bfloat16)
    data = toy_data(None)
    result = lowbit.tune(base, tmp_path / "out", data, method=method, options=options(learning_rate=0.02, **needed))
    loaded = lowbit.load(*((base, result.path) if METHODS[method].from_backbone else (result.path,)))
    arguments = {"max_length": 16, "precision": "fp32"}
    assert score_model(loaded, load_tokenizer(base), data, **arguments) == result.metrics
    if method == "outliers":
        assert score_model(spies["model"].eval(), load_tokenizer(base), data, **arguments) != result.metrics
        for name, tensor in spies["written"].items():
            assert torch.equal(adapter_target(loaded, name), tensor.to(adapter_target(loaded, name).dtype)), name


@pytest.mark.parametrize("labels", [("no", "yes"), None])
def test_tuning_learns_the_training_rows(tiny, tmp_path, labels):
    data = toy_data(labels)
    data = dataclasses.replace(data, evaluations={"train": data.train})
    chosen = options(epochs=10, learning_rate=0.1, head_learning_rate=0.02)
    result = lowbit.tune(tiny.backbone("gpt2"), tmp_path / "out", data, options=chosen)
    assert result.score > 0.8


def test_held_out_rows_come_from_the_training_rows(tiny, tmp_path, spies, monkeypatch):
    """Dev decides nothing: it is read only after the result is written."""
    seen = []
    monkeypatch.setattr(trainer, "held_out_loss", lambda model, rows, *_: seen.append(rows) or 1.0)
    data = toy_data()
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", data, options=options(hold_out=0.25, seed=3))
    kept, held_out = data.train.split(0.25, seed=3)
    assert (result.rows, len(kept)) == (18, 18)
    assert seen == [encode(held_out, load_tokenizer(tiny.backbone("bert")), 16)]
    assert spies["features"] == encode(kept, load_tokenizer(tiny.backbone("bert")), 16)


def test_too_little_to_hold_out(tiny, tmp_path):
    with pytest.raises(DataError, match=r"toy: holding out 0.01 of 24 rows leaves one side empty"):
        lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(), options=options(hold_out=0.01))


def test_the_seed_decides_every_byte(tiny, tmp_path):
    bytes_of = []
    for index, seed in enumerate((7, 7, 8)):
        torch.rand(index)  # the caller's states play no part
        result = lowbit.tune(
            tiny.model("bert"), tmp_path / str(index), toy_data(), method="full", options=options(seed=seed)
        )
        files = file_bytes(result.path)
        bytes_of.append({name: digest for name, digest in files.items() if name.endswith(".safetensors")})
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]


def test_full_writes_an_ordinary_model(tiny, tmp_path):
    result = lowbit.tune(tiny.model("bert"), tmp_path / "out", toy_data(), method="full", options=options())
    files = {path.name for path in result.path.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    model = lowbit.load(result.path)
    assert (type(model).__name__, model.config.id2label) == ("BertForSequenceClassification", {0: "no", 1: "yes"})
    task = model.config.lowbit_task
    assert (task["task"], task["label_names"], task["max_length"]) == ("toy", ["no", "yes"], 16)
    before, _ = load_classifier(tiny.model("bert"), ("no", "yes"), seed=0)
    changed = [n for n, value in before.state_dict().items() if not torch.equal(value, model.state_dict()[n])]
    assert len(changed) > 30


def test_ptq_is_full_and_then_quantize(tiny, tmp_path):
    recipe = lowbit.Recipe.parse({"scheme": {"bits": 3, "outliers": {"rule": "random", "share": 0.02}}})
    chosen = options(recipe=recipe, seed=2)
    full = lowbit.tune(tiny.model("bert"), tmp_path / "full", toy_data(), method="full", options=chosen)
    ptq = lowbit.tune(tiny.model("bert"), tmp_path / "ptq", toy_data(), method="ptq", options=chosen)
    lowbit.quantize(full.path, recipe, output=tmp_path / "quantized", seed=2)
    names = [tmp_path / name / "model.safetensors" for name in ("ptq", "quantized")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert lowbit.load(ptq.path).config.quantization_config.parsed_recipe() == chosen.recipe
    assert (ptq.path / "tokenizer.json").is_file()
    assert ptq.trained == full.trained


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_are_trained_in_float32(tiny, tmp_path, dtype):
    backbone = tiny.backbone("opt", dtype=dtype)
    _, tensors = read_adapter(tiny.adapter("opt", dtype=dtype))
    before = lowbit.load(backbone)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float16 if name.endswith("outlier_value") else torch.float32)
        assert tensor.isfinite().all()
    norm = tensors["decoder.layers.0.final_layer_norm.weight"]
    moved = norm - before.model.decoder.layers[0].final_layer_norm.weight.float()
    assert 0 < moved.abs().max() < 2**-8  # a step that bfloat16 would lose
    assert lowbit.load(backbone, tiny.adapter("opt", dtype=dtype)).dtype == dtype


def test_regression(tiny, tmp_path):
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(None), options=options())
    assert (result.metric, set(result.metrics["dev"])) == ("spearman", {"pearson", "spearman"})
    assert result.score == result.metrics["dev"]["spearman"]
    assert read_info(result.path).label_names is None


@pytest.mark.parametrize("arch", BACKBONES)
def test_pairs_of_texts(tiny, tmp_path, arch):
    data = toy_data(("a", "b", "c"), pairs=True)
    result = lowbit.tune(tiny.backbone(arch), tmp_path / "out", data, options=options())
    assert 0 <= result.score <= 1


def test_evaluation_rows_are_not_needed(tiny, tmp_path):
    data = dataclasses.replace(toy_data(), evaluations={})
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", data, options=options())
    assert result.metrics == {}
    assert result.score != result.score
    assert read_info(result.path).task == "toy"


def test_progress_counts_steps_and_then_rows(tiny, tmp_path):
    calls = []
    lowbit.tune(
        tiny.backbone("bert"),
        tmp_path / "out",
        toy_data(),
        options=options(),
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(1, 3, "steps"), (2, 3, "steps"), (3, 3, "steps"), (0, 12, "rows"), (12, 12, "rows")]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_else_is_touched(tiny, tmp_path, monkeypatch, capfd, method):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    base, needed = tiny.start(method)
    before, states, environment = file_bytes(base), random_states(), dict(os.environ)
    capfd.readouterr()
    lowbit.tune(base, tmp_path / "deep" / "out", toy_data(), method=method, options=options(**needed))
    assert capfd.readouterr() == ("", "")
    assert random_states() == states
    assert dict(os.environ) == environment
    assert file_bytes(base) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert list((tmp_path / "cwd").iterdir()) == []
