import math
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import DataError, MissingExtraError
from lowbit.metrics import score

# true positives 2, false positives 1, false negatives 2, true negatives 3
PREDICTED = [1, 1, 1, 0, 0, 0, 0, 0]
TRUE = [1, 1, 0, 1, 1, 0, 0, 0]


def test_classification_by_hand():
    scores = score(["accuracy", "f1", "matthews"], PREDICTED, TRUE)
    assert list(scores) == ["accuracy", "f1", "matthews"]
    assert scores["accuracy"] == 5 / 8
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert scores["matthews"] == pytest.approx((2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert all(type(value) is float for value in scores.values())


def test_f1_is_of_class_1_also_among_several():
    assert score(["f1"], [1, 2, 0, 1], [1, 1, 2, 0]) == {"f1": pytest.approx(2 * 1 / (2 * 1 + 1 + 1))}


def test_correlations_by_hand():
    predicted, true = [1.0, 2.0, 3.0, 10.0], [1.0, 3.0, 2.0, 4.0]
    # deviations from the means 4 and 2.5: products sum to 4.5 - 1 + 0.5 + 9, squares to 50 and 5
    assert score(["pearson"], predicted, true)["pearson"] == pytest.approx(13 / math.sqrt(50 * 5))
    # ranks differ by 0, 1, 1, 0
    assert score(["spearman"], predicted, true)["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_constant_predictions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(["pearson", "spearman", "matthews", "f1"], [0, 0, 0], [0, 1, 1])
        nothing = score(["f1", "matthews"], [0, 0], [0, 0])
    assert math.isnan(scores["pearson"])
    assert math.isnan(scores["spearman"])
    assert (scores["matthews"], scores["f1"]) == (0.0, 0.0)
    assert nothing == {"f1": 0.0, "matthews": 0.0}


def test_one_row_has_no_correlation():
    assert math.isnan(score(["pearson"], [1.0], [2.0])["pearson"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_perfect_predictions(labels):
    scores = score(["accuracy", "matthews"], np.array(labels), labels)
    assert scores["accuracy"] == 1.0
    assert scores["matthews"] == pytest.approx(1.0 if len(set(labels)) > 1 else 0.0)


@pytest.mark.parametrize(
    ("predicted", "true"), [([], []), ([1], [1, 0]), ([[0.1, 0.9]], [1]), ([[0.1, 0.9]], [[0.1, 0.9]])]
)
def test_columns_that_do_not_match_are_refused(predicted, true):
    with pytest.raises(DataError, match="one prediction for each label"):
        score(["accuracy"], predicted, true)


def test_unknown_metric():
    with pytest.raises(DataError, match=r"unknown metric 'bleu'; use one of accuracy, f1, matthews"):
        score(["accuracy", "bleu"], [1], [1])


@pytest.mark.parametrize(("metric", "module"), [("f1", "sklearn.metrics"), ("pearson", "scipy.stats")])
def test_missing_extra_is_named(monkeypatch, metric, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module}.*pip install 'lowbit\[eval\]'"):
        score([metric], [1, 0], [0, 1])
