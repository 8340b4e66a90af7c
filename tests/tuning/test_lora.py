"""Low-rank factors: what is trained, that the file holds it and nothing else, and where loftq starts."""

import json

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit.adapter import read_adapter
from lowbit.checkpoint import load_tokenizer
from lowbit.data import text_data
from lowbit.errors import AdapterError, CheckpointError
from lowbit.hf.peft import factor_tensors, factors, split_tensors
from lowbit.nn import QuantLinear
from lowbit.scoring import score_model
from lowbit.tuning import trainer
from tests.models import WORDS, file_bytes, load, output
from tests.tiny import options, texts_of, toy_data

METHODS = ["lora", "loftq"]
# The sum of both sides of every quantized linear, the weights of all of them, and the values of the head.
SIZES = {
    "bert": (2 * (4 * 64 + 2 * 80), 8 * 1024 + 4 * 1536, 33 * 32 + 33 * 2),
    "t5": (2176, 36864, 33 * 32 + 33 * 2),
    "gpt2": (1024, 24576, 2 * 32),
}
FAST = {"rank": 4, "learning_rate": 0.02, "head_learning_rate": 0.02}


def tune(tiny, folder, method="lora", arch="bert", data=None, **changes):
    base, needed = tiny.start(method, arch)
    return lowbit.tune(base, folder, data or toy_data(), method=method, options=options(**(FAST | needed | changes)))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """Gives the adapter of a method and an architecture; each is made once."""
    made = {}

    def make(method="lora", arch="bert"):
        if (method, arch) not in made:
            made[method, arch] = tune(tiny, tmp_path_factory.mktemp("lora") / "out", method, arch)
        return made[method, arch]

    return make


@pytest.fixture
def spies(monkeypatch):
    """What ``tune`` hands to ``train``."""
    found, original = {}, trainer.train

    def train(model, features, groups, *rest, **settings):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found["groups"] = [([names[id(p)] for p in group["params"]], group["lr"]) for group in groups]
        found["trainable"] = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        found["model"] = model
        found["start"] = {path: [factor.detach().clone() for factor in pair] for path, pair in factors(model).items()}
        return original(model, features, groups, *rest, **settings)

    monkeypatch.setattr(trainer, "train", train)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", SIZES)
def test_factors_and_head_are_trained_and_stored_and_nothing_else(tiny, adapter, method, arch):
    result = adapter(method, arch)
    sides, weights, head = SIZES[arch]
    assert result.trained == {"lora": 4 * sides, "head": head}
    assert result.trained_share == pytest.approx(4 * sides / weights)
    tensors = load_file(result.path / "adapter_model.safetensors")
    pairs, rest = split_tensors(tensors)
    model = lowbit.load(tiny.backbone(arch), result.path)
    quantized = {path.removesuffix(".base_layer") for path, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert set(pairs) == quantized
    assert sum(tensor.numel() for pair in pairs.values() for tensor in pair) == 4 * sides
    assert sum(tensor.numel() for tensor in rest.values()) == head
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    assert all(up.abs().max() > 0 for _, up in pairs.values())
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "task_adapter.json"}
    assert {path.name for path in result.path.iterdir()} == files


@pytest.mark.parametrize("arch", SIZES)
def test_the_result_on_disk_is_what_was_trained(tiny, tmp_path, spies, arch):
    result = tune(tiny, tmp_path / "out", arch=arch)
    trained, loaded = spies["model"].eval(), lowbit.load(tiny.backbone(arch), result.path)
    assert torch.equal(output(trained), output(loaded))
    for name, tensor in factor_tensors(trained).items():
        assert torch.equal(factor_tensors(loaded)[name], tensor), name
    tokenizer = load_tokenizer(tiny.backbone(arch))
    score = score_model(loaded, tokenizer, toy_data(), max_length=16, precision="fp32")
    assert score == result.metrics == json.loads((result.path / "task_adapter.json").read_text())["scores"]
    assert lowbit.evaluate(tiny.backbone(arch), toy_data(), adapter=result.path) == result.metrics
    assert len(list(lowbit.predict(tiny.backbone(arch), texts_of(toy_data()), adapter=result.path))) == 12


def test_everything_else_is_frozen_and_stays_as_it_was(tiny, tmp_path, spies):
    before = lowbit.load(tiny.backbone("bert")).state_dict()
    tune(tiny, tmp_path / "out")
    assert spies["trainable"] == {name for names, _ in spies["groups"] for name in names}
    after = {name.replace(".base_layer", ""): value for name, value in spies["model"].state_dict().items()}
    same = [name for name, value in before.items() if torch.equal(value, after.get(f"bert.{name}", torch.empty(0)))]
    assert set(before) - set(same) == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"learning_rate": None, "head_learning_rate": None}, [1.5e-3, 5e-4]),
        ({"learning_rate": 0.3, "head_learning_rate": 0.2}, [0.3, 0.2]),
    ],
)
def test_factors_and_head_have_their_own_learning_rates(tiny, tmp_path, spies, rates, expected):
    tune(tiny, tmp_path / "out", **rates)
    (main, first), (rest, second) = spies["groups"]
    assert [first, second] == expected
    assert all(".lora_" in name for name in main)
    assert {name.replace("modules_to_save.default.", "") for name in rest} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("rank", [1, 3])
def test_a_budget_gives_the_largest_rank_that_fits(tiny, tmp_path, rank):
    sides, weights, _ = SIZES["bert"]
    for index, budget in enumerate((rank * sides / weights + 1e-9, ((rank + 1) * sides - 1) / weights)):
        result = tune(tiny, tmp_path / str(index), budget=budget)
        assert result.trained["lora"] == rank * sides
        assert result.trained_share <= budget


REFUSED = {
    "budget": ({"budget": 0.05}, AdapterError, "a budget of 5 % of the weights is too small for lora 5.80 %"),
    "rank": ({"rank": 33}, AdapterError, r"attention.self.query is \[32, 32\], which has no rank 33; give a lower one"),
    "no float model": (
        {"method": "loftq", "float_model": None},
        AdapterError,
        "loftq needs the float model .*; give it with --float-model",
    ),
    "float model of another kind": (
        {"method": "loftq", "float_model": lambda tiny: tiny.model("gpt2")},
        CheckpointError,
        "has no module 'encoder.layer.0.attention.self.query' of shape",
    ),
    "another float model": (
        {"method": "loftq", "float_model": lambda tiny: tiny.model("bert", seed=1)},
        AdapterError,
        r"query: quantizing .* has an error of 1\.\d+, the backbone of 0\.\d+; give --float-model the model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_training(tiny, tmp_path, monkeypatch, name):
    changes, error, message = REFUSED[name]
    changes = {key: value(tiny) if callable(value) else value for key, value in changes.items()}
    monkeypatch.setattr(trainer, "train", lambda *_: pytest.fail("training was started"))
    with pytest.raises(error, match=message):
        tune(tiny, tmp_path / "out", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arch", SIZES)
def test_loftq_starts_nearer_to_the_float_model(tiny, tmp_path, spies, arch):
    tune(tiny, tmp_path / "out", "loftq", arch, learning_rate=1e-12, rank=8)
    started = spies["model"].eval()
    reference = load(type(started).__name__, tiny.model(arch))
    plain = load(type(started).__name__, tiny.backbone(arch))
    for path, (down, up) in spies["start"].items():
        module = started.get_submodule(path)
        weight = reference.get_submodule(path).weight.detach()
        weight = weight.t() if arch == "gpt2" else weight
        lost = weight - module.base_layer.weight
        values = torch.linalg.svdvals(lost)
        assert (lost - up @ down).norm() == pytest.approx(float(values[8:].norm()), rel=1e-3), (
            path
        )  # the best of rank 8
        assert torch.allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-3)
    outputs = [model.base_model(**inputs(model))[0] for model in (reference.eval(), plain.eval(), started)]
    with_codes, with_factors = ((outputs[0] - other).norm() for other in outputs[1:])
    assert with_factors < 0.9 * with_codes


def inputs(model):
    ids = torch.arange(4, 20).view(2, 8)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_every_byte(tiny, tmp_path, method):
    found = []
    for index, seed in enumerate((7, 7, 8)):
        torch.rand(index)  # the caller's states play no part
        found.append(file_bytes(tune(tiny, tmp_path / str(index), method, seed=seed).path))
    assert found[0].keys() == found[1].keys()
    same = [name for name in found[0] if found[0][name] == found[1][name]]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(same)
    assert found[0]["adapter_model.safetensors"] != found[2]["adapter_model.safetensors"]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on(tiny, tmp_path, method):
    run = {"accumulate": 2, "hold_out": 0.25, "save_steps": 1, "epochs": 2}
    expected = file_bytes(tune(tiny, tmp_path / "whole", method, **run).path)
    base, needed = tiny.start(method)
    reported = []

    def stop(done, total, what):
        reported.append((done, what))
        if len(reported) == 2:
            raise KeyboardInterrupt

    arguments = {"method": method, "options": options(**(FAST | needed | run))}
    with pytest.raises(KeyboardInterrupt):
        lowbit.tune(base, tmp_path / "out", toy_data(), progress=stop, **arguments)
    assert (tmp_path / ".out.checkpoint").exists()
    reported += [(0, "again")] * 2
    lowbit.tune(base, tmp_path / "out", toy_data(), progress=stop, **arguments)
    assert (3, "steps") in reported
    assert (1, "steps") not in reported[4:]
    assert file_bytes(tmp_path / "out") == expected


def test_recomputing_activations_changes_nothing(tiny, adapter, tmp_path):
    result = tune(tiny, tmp_path / "out", checkpointing=True)
    _, tensors = read_adapter(result.path)
    for name, tensor in read_adapter(adapter().path)[1].items():
        assert torch.allclose(tensors[name], tensor, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("arch", ["opt", "gpt2"])
def test_text(tiny, tmp_path, arch):
    for name, times in (("train.txt", 20), ("eval.txt", 4)):
        (tmp_path / name).write_text("\n".join([" ".join(WORDS)] * times))
    data = text_data(tmp_path / "train.txt", tmp_path / "eval.txt")
    result = tune(tiny, tmp_path / "out", arch=arch, data=data, epochs=4)
    plain = lowbit.perplexity(tiny.backbone(arch), tmp_path / "eval.txt", window=16).perplexity
    assert result.trained["head"] == 0
    assert result.score < 0.8 * plain
    assert lowbit.perplexity(tiny.backbone(arch), tmp_path / "eval.txt", adapter=result.path).perplexity == result.score


def test_half_precision_backbones(tiny, tmp_path):
    """Of T5, whose first parameter is a factor: it must not decide the dtype of the model."""
    backbone = tiny.backbone("t5", dtype=torch.bfloat16)
    result = lowbit.tune(backbone, tmp_path / "out", toy_data(), method="lora", options=options(**FAST))
    _, tensors = read_adapter(result.path)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    loaded = lowbit.load(backbone, result.path)
    assert loaded.dtype == torch.bfloat16
    assert output(loaded).isfinite().all()
