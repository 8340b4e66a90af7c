"""Quantization-aware training: what it trains, and that its result is the model that was trained."""

import pytest
import torch

import lowbit
from lowbit.adapter import load_classifier
from lowbit.data import text_data
from lowbit.errors import SchemeError
from lowbit.nn import FakeQuantLinear, QuantEmbedding
from lowbit.recipe import Recipe
from lowbit.tuning import trainer
from lowbit.tuning.methods import qat
from tests.models import WORDS, save_tiny, tiny_batch, tiny_tokenizer
from tests.tiny import BACKBONES, options, toy_data

RATE = 1e-3


def tune(model, output, recipe="w2", method="qat", data=None, **changes):
    changes = {"learning_rate": RATE, "recipe": Recipe.parse(recipe)} | changes
    return lowbit.tune(model, output, data or toy_data(), method=method, options=options(**changes))


@torch.no_grad()
def logits(model):
    return model.eval()(**tiny_batch(model.config)).logits


@pytest.fixture
def spies(monkeypatch):
    """The model before and after training, what was trained at which rate, and what it computed with at the end."""
    found = {}
    original_train, original_pack = trainer.train, qat.pack_model

    def train(model, features, groups, *rest, **settings):
        found["names"] = {id(parameter): name for name, parameter in model.named_parameters()}
        found["rates"] = {found["names"][id(p)]: group["lr"] for group in groups for p in group["params"]}
        found["before"] = {name: value.clone() for name, value in model.state_dict().items()}
        done = original_train(model, features, groups, *rest, **settings)
        found["after"] = {name: value.clone() for name, value in model.state_dict().items()}
        return done

    def pack_model(model):
        fakes = {path: module for path, module in model.named_modules() if isinstance(module, FakeQuantLinear)}
        found["weights"] = {path: module.weight.detach() for path, module in fakes.items()}
        found["logits"] = logits(model)
        return original_pack(model)

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(qat, "pack_model", pack_model)
    return found


def test_every_parameter_but_the_word_embeddings_is_trained(tiny, tmp_path, spies):
    result = tune(tiny.model("bert"), tmp_path / "out")
    model, _ = load_classifier(tiny.model("bert"), ("no", "yes"), seed=0)
    table = "bert.embeddings.word_embeddings"
    blocks = [name for name in spies["rates"] if name.endswith(".latent")]
    kept = {n for n, _ in model.named_parameters()} - {f"{n.removesuffix('.latent')}.weight" for n in blocks}
    scales = {f"{name.removesuffix('.latent')}.scale" for name in blocks}
    assert len(blocks) == 12
    assert set(spies["rates"]) == {*blocks, *scales, *kept} - {f"{table}.weight"}
    moved = {name for name, value in spies["before"].items() if not torch.equal(value, spies["after"][name])}
    assert moved == set(spies["rates"])
    assert {f"{table}.codes", f"{table}.scale"} <= spies["before"].keys() - moved
    weights, steps = 8 * 1024 + 4 * 1536, 2 * (5 * 32 + 48)
    rest = sum(parameter.numel() for parameter in model.parameters()) - weights - 64 * 32
    assert result.trained == {"weights": weights, "scales": steps, "rest": rest}
    assert result.trained_share == 1


def test_embeddings_that_stay_in_float_are_trained(tiny, tmp_path, spies):
    recipe = {"scheme": "w4", "embeddings": "float", "skip": ["*.query"]}
    tune(tiny.model("bert"), tmp_path / "out", recipe)
    assert "bert.embeddings.word_embeddings.weight" in spies["rates"]
    assert "bert.encoder.layer.0.attention.self.query.weight" in spies["rates"]
    name = "bert.embeddings.word_embeddings.weight"
    stored = lowbit.load(tmp_path / "out").get_parameter(name)
    assert torch.equal(stored, spies["after"][name])
    assert not torch.equal(stored, spies["before"][name])


def test_steps_change_as_fast_as_weights_relative_to_their_size(tiny, tmp_path, spies):
    tune(tiny.model("bert"), tmp_path / "out", {"scheme": "w8a8s"})
    assert sum(name.endswith(".input_scale") for name in spies["rates"]) == 12
    for name, rate in spies["rates"].items():
        if name.endswith("scale"):
            latent = spies["before"][f"{name.rpartition('.')[0]}.latent"]
            assert rate == pytest.approx(RATE * float(spies["before"][name].mean() / latent.abs().mean()))
            assert rate < RATE / 10 or name.endswith("input_scale")
        else:
            assert rate == RATE
    tune(tiny.model("bert"), tmp_path / "default", learning_rate=None)
    assert spies["rates"]["classifier.weight"] == 5e-5


@pytest.mark.parametrize(
    ("arch", "recipe"),
    [
        *((arch, "w3o2") for arch in BACKBONES),
        ("bert", "w2g16o0"),
        ("gpt2", "w2to1"),
        ("opt", "w2a8"),
        ("bert", "w2a8s"),
    ],
)
def test_the_result_is_the_model_that_was_trained(tiny, tmp_path, spies, arch, recipe):
    result = tune(tiny.model(arch), tmp_path / "out", recipe)
    model = lowbit.load(result.path)
    assert len(spies["weights"]) >= 8
    for path, weight in spies["weights"].items():
        assert torch.equal(model.get_submodule(path).weight, weight), path
    tables = sum(isinstance(module, QuantEmbedding) for module in model.modules())
    assert tables == 1
    torch.testing.assert_close(logits(model), spies["logits"], rtol=1e-5, atol=1e-5)
    config = model.config
    assert config.quantization_config.parsed_recipe() == Recipe.parse(recipe)
    assert (config.lowbit_task["task"], config.lowbit_task["trained"]) == ("toy", result.trained)
    assert (result.path / "tokenizer.json").is_file()
    lowbit.verify(result.path)


def test_eight_bits_are_close_to_float_and_two_are_not(tiny, tmp_path):
    full = logits(lowbit.load(tune(tiny.model("bert"), tmp_path / "full", method="full").path))
    changes = {}
    for recipe in ("w8", "w2"):
        found = logits(lowbit.load(tune(tiny.model("bert"), tmp_path / recipe, recipe).path))
        changes[recipe] = float((found - full).norm() / full.norm())
    assert changes["w8"] < 0.05
    assert changes["w2"] > 5 * changes["w8"]


def test_training_through_the_rounding_beats_rounding_afterwards(tiny, tmp_path):
    """At 2 bits, on the loss of the training rows."""
    losses = {}
    for method in ("ptq", "qat"):
        result = tune(tiny.model("bert"), tmp_path / method, "w2o0", method, epochs=20)
        model, loss = lowbit.load(result.path), []
        tokenizer = lowbit.checkpoint.load_tokenizer(result.path)
        for text, label in zip(toy_data().train.texts, toy_data().train.labels, strict=True):
            inputs = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                loss.append(float(model(**inputs, labels=torch.tensor([label])).loss))
        losses[method] = sum(loss) / len(loss)
    assert losses["qat"] < 0.8 * losses["ptq"]


def test_a_batch_can_be_accumulated(tmp_path):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = save_tiny(tmp_path / "model", "bert", "BertModel", **dropout)
    tiny_tokenizer("bert").save_pretrained(model)
    found = []
    for parts in (1, 4):
        result = tune(model, tmp_path / str(parts), "w4", accumulate=parts)
        found.append(logits(lowbit.load(result.path)))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)
    assert (found[0] - logits(load_classifier(model, ("no", "yes"), seed=0)[0])).abs().max() > 0.05


def test_a_language_model(tiny, tmp_path, spies):
    for name, times in (("train.txt", 20), ("eval.txt", 4)):
        (tmp_path / name).write_text("\n".join([" ".join(WORDS)] * times))
    data = text_data(tmp_path / "train.txt", tmp_path / "eval.txt")
    start = lowbit.quantize(tiny.model("gpt2"), "w4", output=tmp_path / "start")
    before = lowbit.perplexity(start.path, tmp_path / "eval.txt", window=16).perplexity
    result = tune(tiny.model("gpt2"), tmp_path / "out", "w4", data=data, epochs=4, batch_size=4, learning_rate=3e-3)
    assert result.metrics["eval"]["perplexity"] < 0.7 * before
    torch.testing.assert_close(logits(lowbit.load(result.path)), spies["logits"], rtol=1e-5, atol=1e-5)


def test_a_grid_that_cannot_be_trained_is_refused_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train", lambda *_: pytest.fail("training was started"))
    with pytest.raises(SchemeError, match=r"layer\.0\.attention\.self\.query: only symmetric grids"):
        tune(tiny.model("bert"), tmp_path / "out", {"scheme": {"strategy": "kmeans"}})
    assert list(tmp_path.iterdir()) == []
