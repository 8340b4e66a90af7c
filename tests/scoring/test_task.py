import dataclasses
import random

import numpy as np
import pytest
import torch

from lowbit.adapter import load, load_classifier
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.errors import DataError
from lowbit.loop import predict_logits
from lowbit.scoring import check_metrics, decide, score_model, task
from tests.tiny import random_states, toy_data, toy_rows


@pytest.fixture
def classifier(tiny):
    """Calls with label names; gives a float classifier of random weights and its tokenizer."""

    def make(labels):
        folder = tiny.model("bert")
        return load_classifier(folder, labels, seed=0)[0].eval(), load_tokenizer(folder)

    return make


def logits_of(model, tokenizer, examples):
    return predict_logits(model, tokenizer, encode(examples, tokenizer, 16), precision="fp32").numpy()


def test_accuracy_counts_the_rows_whose_largest_logit_is_the_label(classifier):
    model, tokenizer = classifier(("a", "b", "c"))
    data = toy_data(("a", "b", "c"))
    data = dataclasses.replace(data, evaluations=data.evaluations | {"other": toy_rows(("a", "b", "c"), 7, seed=9)})
    scores = score_model(model, tokenizer, data, max_length=16, precision="fp32")
    assert list(scores) == ["dev", "other"]
    for split, examples in data.evaluations.items():
        hits = logits_of(model, tokenizer, examples).argmax(1) == np.array(examples.labels)
        assert scores[split] == {"accuracy": pytest.approx(hits.mean())}
    assert len({score["accuracy"] for score in scores.values()}) == 2


def test_regression_correlates_the_single_output(classifier):
    model, tokenizer = classifier(None)
    data = toy_data(None)
    scores = score_model(model, tokenizer, data, max_length=16, precision="fp32")["dev"]
    dev = data.evaluations["dev"]
    expected = np.corrcoef(logits_of(model, tokenizer, dev)[:, 0], dev.labels)[0, 1]
    assert scores["pearson"] == pytest.approx(expected, abs=1e-4)
    assert set(scores) == {"pearson", "spearman"}


def test_rows_are_cut_at_the_maximum_length(classifier):
    model, tokenizer = classifier(None)
    data = toy_data(None)
    assert score_model(model, tokenizer, data, max_length=3) != score_model(model, tokenizer, data, max_length=16)


@pytest.mark.parametrize(
    ("made_for", "scored_on"), [(("a", "b"), ("a", "b", "c")), (("a", "b"), None), (None, ("a", "b"))]
)
def test_another_number_of_labels_is_refused(classifier, made_for, scored_on):
    model, tokenizer = classifier(made_for)
    data = toy_data(scored_on)
    with pytest.raises(
        DataError, match=f"task 'toy' needs {data.outputs} outputs, the model has {len(made_for or 'a')}"
    ):
        score_model(model, tokenizer, data)


def test_progress_and_batch_size_are_passed_on(classifier):
    model, tokenizer = classifier(("no", "yes"))
    calls = []
    score_model(model, tokenizer, toy_data(), batch_size=6, progress=lambda *call: calls.append(call))
    assert calls == [(0, 12, "rows"), (6, 12, "rows"), (12, 12, "rows")]


def test_quantized_models_are_scored_too(tiny):
    backbone = tiny.backbone("bert")
    model = load(backbone, tiny.adapter("bert"))
    scores = score_model(model, load_tokenizer(backbone), toy_data(), max_length=16)
    assert 0 <= scores["dev"]["accuracy"] <= 1
    assert not model.training


def test_check_metrics_raises_before_training():
    check_metrics(toy_data())
    check_metrics(toy_data(None))
    check_metrics(dataclasses.replace(toy_data(), metrics=("unknown",), evaluations={}))
    with pytest.raises(DataError, match="unknown metric 'unknown'"):
        check_metrics(dataclasses.replace(toy_data(), metrics=("accuracy", "unknown")))


def test_what_the_metrics_draw_is_given_back(classifier, monkeypatch):
    """Importing scikit-learn for the first time draws from ``random``."""
    monkeypatch.setattr(task, "score", lambda *_: {"accuracy": random.random() + np.random.rand()})
    model, tokenizer = classifier(("no", "yes"))
    before = random_states()
    check_metrics(toy_data())
    score_model(model, tokenizer, toy_data())
    assert random_states() == before


def test_decide():
    logits = torch.tensor([[0.25, 3.0, -1.0], [7.0, 7.5, 8.0]])
    assert decide(logits, regression=False).tolist() == [1, 2]
    assert decide(logits, regression=True).tolist() == [0.25, 7.0]
