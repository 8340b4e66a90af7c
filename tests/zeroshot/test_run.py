"""``lowbit.zeroshot`` end to end: every kind of model, every method."""

import pytest
import torch

import lowbit
from lowbit.checkpoint import read_quantization_config
from lowbit.nn import QuantLinear
from tests.models import file_bytes, stored
from tests.tiny import options as tune_options
from tests.tiny import random_states, texts_of, toy_data
from tests.zeroshot.runs import gap_of, zeroshot

MODELS = [
    ("bert", "BertForSequenceClassification"),
    ("bert", "BertModel"),
    ("bert", "BertForMaskedLM"),
    ("t5", "T5ForConditionalGeneration"),
    ("opt", "OPTForCausalLM"),
    ("gpt2", "GPT2ForSequenceClassification"),
]
CLASSIFIER = MODELS[0]


@pytest.mark.parametrize(("arch", "class_name"), MODELS, ids=[name for _, name in MODELS])
def test_the_result_is_nearer_to_its_teacher(tiny, tmp_path, arch, class_name):
    model = tiny.model(arch, class_name)
    result = zeroshot(model, tmp_path / "out", steps=8)
    assert result.gap < 0.8 * result.start_gap
    assert gap_of(model, result.path) == pytest.approx(result.gap, rel=1e-4)
    assert lowbit.verify(result.path)
    loaded = lowbit.load(result.path)
    assert type(loaded).__name__ == class_name
    linears = [module for module in loaded.modules() if isinstance(module, QuantLinear)]
    assert len(linears) >= 8
    assert {module.tensor.scheme.activations for module in linears} == {"dynamic"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["zsaq", "zeroquant"])
@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_static_steps_of_the_inputs_are_trained_and_written(tiny, tmp_path, arch, method):
    model = tiny.model(arch)
    result = zeroshot(model, tmp_path / "out", recipe="w2a8s", method=method)
    assert result.gap < result.start_gap
    assert gap_of(model, result.path) == pytest.approx(result.gap, rel=1e-4)
    lowbit.quantize(model, "w2a8so0", output=tmp_path / "start")
    ours, start = (stored(tmp_path / name)[0] for name in ("out", "start"))
    steps = [name for name in start if name.endswith(".input_scale")]
    assert len(steps) >= 12
    changes = torch.cat([ours[name] / start[name] - 1 for name in steps]).abs()
    assert (changes > 0).float().mean() > 0.9
    assert changes.max() < 0.5


def test_results_are_evaluated_and_predicted_with(tiny, tmp_path):
    data = toy_data()
    result = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", recipe="w4a8o1", method="random")
    scores = lowbit.evaluate(result.path, data)
    assert 0 <= scores["dev"]["accuracy"] <= 1
    assert len(list(lowbit.predict(result.path, texts_of(data)))) == len(data.evaluations["dev"])


def test_a_bare_model_gives_a_backbone_to_tune(tiny, tmp_path):
    result = zeroshot(tiny.model("bert"), tmp_path / "backbone", recipe="w2o2", method="random")
    tuned = lowbit.tune(result.path, tmp_path / "adapter", toy_data(), options=tune_options(epochs=1))
    assert tuned.trained["outliers"] > 0


def test_word_tables_stay_as_they_were_quantized(tiny, tmp_path):
    """And the projection onto the vocabulary, which shares them; norms and linears are trained."""
    model = tiny.model("opt")
    zeroshot(model, tmp_path / "out", method="random")
    lowbit.quantize(model, "w2a8o0", output=tmp_path / "quantized")
    ours, theirs = stored(tmp_path / "out")[0], stored(tmp_path / "quantized")[0]
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if "embed_tokens" in name} <= same
    assert not any("fc1" in name or "layer_norm" in name for name in same)


def test_outliers_are_kept_where_the_scheme_asks_for_them(tiny, tmp_path):
    zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", recipe="w2a8o0.5", method="random", steps=1)
    assert any(name.endswith("outlier_value") for name in stored(tmp_path / "out")[0])
    assert read_quantization_config(tmp_path / "out")["recipe"]["scheme"]["outliers"]["share"] == 0.005


def test_results_for_pairs_are_judged_and_calibrated_by_pairs(tiny, tmp_path):
    model, scheme = tiny.model(*CLASSIFIER), {"bits": 2, "activations": "dynamic", "strategy": "gptq", "outliers": None}
    run = {"recipe": {"scheme": scheme}, "method": "rtn"}
    rounded, other = (zeroshot(model, tmp_path / f"{share}", pairs=share, **run) for share in (1.0, 0.0))
    assert file_bytes(rounded.path)["model.safetensors"] != file_bytes(other.path)["model.safetensors"]
    assert rounded.gap == pytest.approx(gap_of(model, rounded.path, pairs=1.0), rel=1e-5)
    assert rounded.gap != pytest.approx(gap_of(model, rounded.path), rel=1e-2)
    real = zeroshot(model, tmp_path / "real", method="real", texts=[("good film", "bad book")] * 4)
    assert real.gap == pytest.approx(gap_of(model, real.path, pairs=1.0), rel=1e-5)


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    model = tiny.model(*CLASSIFIER)  # made here if it is the first test that asks for it, which draws random numbers
    before, found = random_states(), []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1) if name == "b" else None
        result = zeroshot(model, tmp_path / name, steps=3, seed=seed)
        found.append((file_bytes(result.path)["model.safetensors"], result.record, result.gap))
        if name == "a":
            assert random_states() == before
    assert found[0] == found[1] != found[2]


def test_a_generator_that_shares_the_vocabulary(tiny, tmp_path):
    """A language model instead of the built-in network: it is trained, and others that do not suit are refused."""
    result = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", generator=tiny.model("opt"), steps=4)
    assert result.counts["ascents"] == 4
    assert result.gap < result.start_gap
