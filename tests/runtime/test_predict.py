import itertools
import math

import pytest
import torch

import lowbit
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.errors import AdapterError, CheckpointError, DataError, SchemeError, UnsupportedModelError
from lowbit.loop import predict_logits
from lowbit.runtime import predict as predict_function
from lowbit.runtime import prepare
from tests.models import file_bytes
from tests.tiny import BACKBONES, options, random_states, texts_of, toy_data

TEXTS = texts_of(toy_data())


@pytest.fixture
def loaded(tiny):
    """Backbone and adapter of an architecture as arguments of ``predict``."""
    return lambda arch="bert": (tiny.backbone(arch), tiny.adapter(arch))


def predict(folders, texts, **sizes):
    return list(lowbit.predict(folders[0], texts, adapter=folders[1], **sizes))


@pytest.mark.parametrize("arch", BACKBONES)
def test_probabilities_are_those_of_the_model(tiny, loaded, arch):
    backbone, adapter = folders = loaded(arch)
    tokenizer = load_tokenizer(backbone)
    rows = encode(toy_data().evaluations["dev"], tokenizer, 16)
    unprepared = predict_logits(lowbit.load(backbone, adapter), tokenizer, rows).softmax(dim=1)
    prepared = prepare(lowbit.load(backbone, adapter), backend="torch")
    expected = predict_logits(prepared, tokenizer, rows, precision="fp32").softmax(dim=1)
    assert not torch.equal(expected, unprepared)
    torch.testing.assert_close(expected, unprepared, rtol=0, atol=0.03)
    answers = predict(folders, TEXTS)
    assert len(answers) == len(TEXTS)
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert set(answer) == {"label", "score", "probabilities"}
        assert answer["probabilities"] == pytest.approx({"no": row[0], "yes": row[1]}, abs=1e-5)
        assert answer["score"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert len({answer["score"] for answer in answers}) > 6
    for answer, other in zip(lowbit.predict(tiny.merged(arch), TEXTS), answers, strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=0.01)


def test_answers_are_in_input_order_whatever_the_batches(loaded):
    expected = predict(loaded(), TEXTS)
    for batch_size in (1, 5):
        for answer, other in zip(predict(loaded(), TEXTS, batch_size=batch_size), expected, strict=True):
            assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert [a["score"] for a in predict(loaded(), TEXTS[::-1])] == pytest.approx([a["score"] for a in expected[::-1]])


def test_labels_are_those_of_the_task(loaded, tiny, tmp_path):
    result = lowbit.tune(tiny.backbone("bert"), tmp_path / "out", toy_data(("z", "b", "a")), options=options())
    (answer,) = predict((tiny.backbone("bert"), result.path), ["good film"])
    assert list(answer["probabilities"]) == ["z", "b", "a"]


def test_regression_gives_values(tiny, tmp_path):
    result = lowbit.tune(tiny.backbone("opt"), tmp_path / "out", toy_data(None), options=options())
    answers = predict((tiny.backbone("opt"), result.path), TEXTS)
    assert all(set(answer) == {"value"} and math.isfinite(answer["value"]) for answer in answers)
    assert len({answer["value"] for answer in answers}) > 6
    merged = lowbit.merge(tiny.backbone("opt"), result.path, tmp_path / "merged")
    found = [answer["value"] for answer in lowbit.predict(merged, TEXTS)]
    assert found == pytest.approx([answer["value"] for answer in answers], abs=0.01)  # its outliers stretch other rows


def test_pairs_of_texts(loaded):
    pairs = [("good film", "a song"), ("good film", "bad"), ("bad", "good film")]
    answers = predict(loaded(), pairs)
    assert len({answer["score"] for answer in answers}) == 3
    assert answers[0]["score"] != predict(loaded(), ["good film"])[0]["score"]
    with pytest.raises(DataError, match="input: 1 pairs for 2 texts; give one for each text"):
        predict(loaded(), ["alone", ("one", "two")])


def test_the_maximum_length_is_the_adapters_unless_given(tiny, loaded):
    texts = ["the " * 17 + word for word in ("good", "bad")]
    for answers in (predict(loaded(), texts), list(lowbit.predict(tiny.merged("bert"), texts))):
        assert answers[0] == answers[1]
    for answers in (
        predict(loaded(), texts, max_length=24),
        list(lowbit.predict(tiny.merged("bert"), texts, max_length=24)),
    ):
        assert answers[0] != answers[1]
    with pytest.raises(DataError, match="a row has 30 tokens, the model takes 24"):
        predict(loaded(), ["the " * 40], max_length=30)


def test_input_is_read_as_it_is_needed(loaded, monkeypatch):
    monkeypatch.setitem(predict_function.__globals__, "_AHEAD", 6)
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield f"{'good' if number % 2 else 'bad'} film {'very ' * (number % 5)}"

    answers = lowbit.predict(loaded()[0], endless(), adapter=loaded()[1])
    assert read == []
    found = [next(answers) for _ in range(8)]
    assert len(read) == 12
    whole = predict(loaded(), list(itertools.islice(endless(), 8)))
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in whole])


def test_no_text_gives_no_answer(loaded):
    assert predict(loaded(), []) == []


def test_empty_and_unknown_words_are_texts_too(loaded):
    for arch in BACKBONES:
        together = predict(loaded(arch), ["", "zebra", "good film"])
        alone = [predict(loaded(arch), [text])[0] for text in ("", "zebra", "good film")]
        assert [answer["score"] for answer in together] == pytest.approx([answer["score"] for answer in alone])


def test_nothing_else_is_touched(loaded, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before, states = [file_bytes(folder) for folder in loaded()], random_states()
    capfd.readouterr()
    predict(loaded(), TEXTS)
    assert capfd.readouterr() == ("", "")
    assert random_states() == states
    assert [file_bytes(folder) for folder in loaded()] == before
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_head_is_refused_before_any_text_is_read(tiny):
    for folder in (tiny.backbone("bert"), tiny.model("gpt2"), tiny.backbone("t5")):
        with pytest.raises(UnsupportedModelError, match="has no classification head; give the adapter of a task"):
            lowbit.predict(folder, iter(()))


def test_other_errors_come_before_any_text_is_read(tiny, loaded, tmp_path):
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        lowbit.predict(tiny.backbone("bert", seed=1), [], adapter=loaded()[1])
    with pytest.raises(CheckpointError, match="is not a model folder"):
        lowbit.predict(tmp_path / "absent", [])
    for sizes in ({"batch_size": 0}, {"max_length": 0}):
        with pytest.raises(SchemeError, match="must be positive"):
            lowbit.predict(loaded()[0], [], adapter=loaded()[1], **sizes)


def test_a_classifier_from_elsewhere_predicts_too(tiny):
    folder = tiny.model("roberta", "RobertaForSequenceClassification")
    answers = list(lowbit.predict(folder, TEXTS))
    assert {label for answer in answers for label in answer["probabilities"]} == {"LABEL_0", "LABEL_1"}
    quantized = list(lowbit.predict(tiny.backbone("roberta", "RobertaForSequenceClassification", "w8"), TEXTS))
    scores = torch.tensor([[answer["probabilities"]["LABEL_1"] for answer in found] for found in (answers, quantized)])
    assert (scores[0] - scores[1]).abs().max() < 0.02


def test_static_activations_are_predicted_with(tiny, tmp_path):
    backbone = tiny.backbone("bert", recipe="w4a8so2")
    lowbit.tune(backbone, tmp_path / "adapter", toy_data(), options=options())
    tokenizer = load_tokenizer(backbone)
    rows = encode(toy_data().evaluations["dev"], tokenizer, 16)
    expected = predict_logits(lowbit.load(backbone, tmp_path / "adapter"), tokenizer, rows).softmax(dim=1)
    answers = predict((backbone, tmp_path / "adapter"), TEXTS)
    found = torch.tensor([list(answer["probabilities"].values()) for answer in answers])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)
