"""Tuning causal language models on plain text."""

import json
import re

import pytest
import torch

import lowbit
from lowbit.adapter import AdapterInfo, adapter_target, load_causal_lm, read_adapter, read_info
from lowbit.checkpoint import load_tokenizer
from lowbit.data import TextData, text_data
from lowbit.errors import AdapterError, DataError, UnsupportedModelError
from lowbit.scoring import score_text
from lowbit.tuning import prepare, trainer
from tests.models import WORDS, file_bytes, save_tiny, tiny_tokenizer
from tests.tiny import options, toy_data

CAUSAL = ["opt", "gpt2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text of 280 words in one order over and over, and another 56 of it."""
    folder = tmp_path_factory.mktemp("text")
    for name, times in (("train.txt", 20), ("eval.txt", 4)):
        (folder / name).write_text("\n".join([" ".join(WORDS)] * times))
    return text_data(folder / "train.txt", folder / "eval.txt")


@pytest.fixture(scope="module")
def adapters(tiny, data, tmp_path_factory):
    """The result of tuning the backbone of each causal architecture."""
    folder = tmp_path_factory.mktemp("adapters")
    rates = {"epochs": 2, "batch_size": 4, "learning_rate": 0.05, "head_learning_rate": 0.01}
    return {arch: lowbit.tune(tiny.backbone(arch), folder / arch, data, options=options(**rates)) for arch in CAUSAL}


def test_the_data_names_its_files(data):
    assert data == TextData("train", data.train, {"eval": data.train.with_name("eval.txt")})
    assert text_data("a/b.txt").evaluations == {}


@pytest.mark.parametrize("arch", CAUSAL)
def test_the_adapter_holds_outliers_norms_and_biases(tiny, adapters, arch):
    result = adapters[arch]
    info, tensors = read_adapter(result.path)
    assert info == AdapterInfo(
        fingerprint=lowbit.verify(tiny.backbone(arch)).fingerprint,
        task="train",
        metrics=("perplexity", "bits_per_byte", "word_perplexity"),
        primary="perplexity",
        label_names=None,
        max_length=16,
        trained=result.trained,
        options=info.options,
        scores=result.metrics,
        task_type="causal-lm",
    )
    model = load_causal_lm(tiny.backbone(arch))
    groups = prepare(model)
    assert groups["head"] == []
    assert set(tensors) == {name for names in groups.values() for name in names}
    assert {group for group, count in result.trained.items() if count} == {"outliers", "norms", "biases", "scales"}
    still = [name for name, tensor in tensors.items() if torch.equal(adapter_target(model, name), tensor)]
    assert still == []
    assert (result.metric, result.rows, result.steps) == ("perplexity", 280 // 16, 10)
    json.dumps(lowbit.inspect(result.path))
    assert lowbit.inspect(result.path)["task_type"] == "causal-lm"
    assert lowbit.verify(result.path).tensors == len(tensors)


@pytest.mark.parametrize("arch", CAUSAL)
def test_the_score_is_that_of_the_adapter_on_disk_and_of_the_merged_model(tiny, data, adapters, tmp_path, arch):
    result, backbone = adapters[arch], tiny.backbone(arch)
    text = data.evaluations["eval"]
    score = lowbit.perplexity(backbone, text, adapter=result.path)
    assert (score.window, score.stride) == (16, 8)  # as it was tuned
    metrics = ("perplexity", "bits_per_byte", "word_perplexity")
    assert result.metrics == {"eval": {name: getattr(score, name) for name in metrics}}
    assert result.score == score.perplexity
    untuned = lowbit.perplexity(backbone, text, window=16)
    assert score.perplexity < 0.8 * untuned.perplexity

    model = lowbit.load(backbone, result.path)
    assert type(model).__name__ in ("OPTForCausalLM", "GPT2LMHeadModel")
    assert not model.training
    assert score_text(model, load_tokenizer(backbone), text, window=16) == score
    merged = lowbit.merge(backbone, result.path, tmp_path / "merged")
    assert lowbit.perplexity(merged, text) == score


def test_what_the_cards_show_goes_on_from_a_text(tiny, adapters, tmp_path, capsys):
    backbone, adapter = tiny.backbone("opt"), adapters["opt"].path
    merged = lowbit.merge(backbone, adapter, tmp_path / "merged")
    for folder in (adapter, merged):
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "pipeline_tag: text-generation" in card
        example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        for placeholder, value in {"ITS-BACKBONE": backbone, "THIS-REPOSITORY": folder, "some text": "good"}.items():
            example = example.replace(placeholder, str(value))
        exec(example, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert len(first.split()) > 3


@pytest.mark.parametrize("method", ["full", "ptq"])
def test_the_other_methods_write_language_models(tiny, data, tmp_path, method):
    chosen = options(learning_rate=3e-3, recipe=lowbit.Recipe.parse("w8"))
    result = lowbit.tune(tiny.model("gpt2"), tmp_path / "out", data, method=method, options=chosen)
    text = data.evaluations["eval"]
    score = lowbit.perplexity(result.path, text)
    assert (result.score, score.window) == (score.perplexity, 16)
    assert score.perplexity < 0.9 * lowbit.perplexity(tiny.model("gpt2"), text, window=16).perplexity
    assert type(lowbit.load(result.path)).__name__ == "GPT2LMHeadModel"
    assert result.trained == {"all": lowbit.load(tiny.model("gpt2")).num_parameters()}


@pytest.mark.parametrize(("arch", "recipe"), [("opt", {"scheme": "w4o2", "embeddings": "float"}), ("opt", "w4o2")])
def test_the_output_projection_stays_frozen(tiny, tmp_path, arch, recipe):
    groups = prepare(model := load_causal_lm(tiny.backbone(arch, recipe=recipe)))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("embed" in name or "lm_head" in name for name in trainable)
    assert len(trainable) == sum(map(len, groups.values()))


def test_an_untied_output_projection_stays_frozen(tmp_path):
    folder = save_tiny(tmp_path / "model", "gpt2", "GPT2LMHeadModel", tie_word_embeddings=False)
    tiny_tokenizer("gpt2").save_pretrained(folder)
    lowbit.quantize(folder, "w4o2", output=tmp_path / "backbone")
    model = load_causal_lm(tmp_path / "backbone")
    groups = prepare(model)
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert not model.lm_head.weight.requires_grad
    assert groups["head"] == []


def test_held_out_blocks_come_from_the_end_of_the_text(tiny, data, tmp_path, monkeypatch):
    found = {}

    def train(model, features, groups, options, *, held_out, items, **settings):
        found.update(features=features, held_out=held_out, items=items(features[0]))
        return trainer.Trained(1.0, 0)

    monkeypatch.setattr(trainer, "train", train)
    result = lowbit.tune(tiny.backbone("opt"), tmp_path / "out", data, options=options(hold_out=0.2))
    ids = load_tokenizer(tiny.backbone("opt"))(data.train.read_text(), add_special_tokens=False)["input_ids"]
    blocks = [ids[start : start + 16] for start in range(0, 272, 16)]
    assert [row["input_ids"] for row in found["features"]] == blocks[:14]
    assert [row["input_ids"] for row in found["held_out"]] == blocks[14:]
    assert found["items"] == 15
    assert result.rows == 14
    with pytest.raises(DataError, match=r"train\.txt: holding out 0.01 of 17 blocks leaves one side empty"):
        lowbit.tune(tiny.backbone("opt"), tmp_path / "other", data, options=options(hold_out=0.01))


def test_the_lowest_held_out_loss_is_kept(tiny, data, tmp_path):
    chosen = options(epochs=2, hold_out=0.2, patience=1)
    result = lowbit.tune(tiny.backbone("opt"), tmp_path / "out", data, options=chosen)
    assert result.steps in (2, 4)


def test_a_stopped_run_goes_on_to_the_same_bytes(tiny, data, tmp_path):
    def stop(done, total, what):
        if what == "steps" and done == 2:
            raise KeyboardInterrupt

    chosen = options(epochs=2, batch_size=8, save_steps=1)
    whole = lowbit.tune(tiny.backbone("gpt2"), tmp_path / "whole", data, options=chosen)
    with pytest.raises(KeyboardInterrupt):
        lowbit.tune(tiny.backbone("gpt2"), tmp_path / "stopped", data, options=chosen, progress=stop)
    assert [path.name for path in tmp_path.iterdir() if "stopped" in path.name] == [".stopped.checkpoint"]
    steps = []
    result = lowbit.tune(
        tiny.backbone("gpt2"), tmp_path / "stopped", data, options=chosen, progress=lambda *call: steps.append(call)
    )
    assert steps[0] == (3, 6, "steps")
    assert file_bytes(result.path) == file_bytes(whole.path)
    assert result.metrics == whole.metrics


def test_labels_are_not_asked_of_a_language_model(tiny, adapters):
    folders = tiny.backbone("opt"), adapters["opt"].path
    message = "has no classification head; .* `lowbit evaluate --perplexity` measures a language model"
    with pytest.raises(UnsupportedModelError, match=message):
        next(lowbit.predict(folders[0], ["good film"], adapter=folders[1]))
    with pytest.raises(UnsupportedModelError, match=message):
        lowbit.evaluate(folders[0], toy_data(), adapter=folders[1])


def test_an_adapter_of_an_unknown_kind_is_refused(adapters, tmp_path):
    values = json.loads((adapters["opt"].path / "task_adapter.json").read_text())
    (tmp_path / "task_adapter.json").write_text(json.dumps(values | {"task_type": "poetry"}))
    with pytest.raises(AdapterError, match="is for a 'poetry', which this lowbit does not know"):
        read_info(tmp_path)


REFUSED = {
    "encoder": ("bert", "BertForMaskedLM", {}, UnsupportedModelError, "holds a 'bert', which is no causal language"),
    "seq2seq": ("t5", None, {}, UnsupportedModelError, "holds a 't5', which is no causal language model"),
    "short text": ("opt", None, {"max_length": 300}, DataError, r"train\.txt has fewer than 300 tokens"),
    "long block": ("opt", None, {"max_length": 30}, DataError, "a row has 30 tokens, the model takes 24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(tiny, data, tmp_path, name):
    arch, class_name, changes, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        lowbit.tune(tiny.backbone(arch, class_name), tmp_path / "out", data, options=options(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_evaluation_file_is_found_before_training(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("training was started"))
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        lowbit.tune(tiny.backbone("opt"), tmp_path / "out", text_data(data.train, tmp_path / "gone.txt"))
