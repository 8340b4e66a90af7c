"""Scores of predictions, with the definitions GLUE uses (extra ``eval``: scikit-learn and scipy)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowbit.errors import DataError, MissingExtraError

Array = np.ndarray[Any, np.dtype[Any]]


def score(
    metrics: Sequence[str], predictions: Sequence[float] | Array, labels: Sequence[float] | Array
) -> dict[str, float]:
    """The named metrics of ``predictions`` [rows] against ``labels`` [rows], class indices or floats.

    ``accuracy``; ``f1`` of class 1 against the rest (0 where neither side has that class); ``matthews`` (0
    where a side is constant); ``pearson`` and ``spearman``, which do not exist where a side is constant and
    are then ``nan``. Raises :class:`DataError` for an unknown name and for columns that are empty or do not
    match.
    """
    for name in metrics:
        if name not in _METRICS:
            raise DataError(f"unknown metric {name!r}; use one of {', '.join(_METRICS)}")
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != true.shape or not predicted.size:
        raise DataError(
            f"predictions of shape {predicted.shape} do not match labels of shape {true.shape}; "
            "give one prediction for each label, and at least one"
        )
    try:
        return {name: float(_METRICS[name](predicted, true)) for name in metrics}
    except ImportError as error:
        raise MissingExtraError(
            f"metrics need {error.name}, which cannot be imported: pip install 'lowbit[eval]'"
        ) from error


def _accuracy(predicted: Array, true: Array) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(true, predicted)


def _f1(predicted: Array, true: Array) -> float:
    from sklearn.metrics import f1_score

    return f1_score(true == 1, predicted == 1, zero_division=0.0)


def _matthews(predicted: Array, true: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(predicted, true) else matthews_corrcoef(true, predicted)


def _pearson(predicted: Array, true: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predicted, true)


def _spearman(predicted: Array, true: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predicted, true)


def _correlation(function: Callable[[Array, Array], Any], predicted: Array, true: Array) -> float:
    return float("nan") if _constant(predicted, true) else function(predicted, true).statistic


def _constant(predicted: Array, true: Array) -> bool:
    # scikit-learn and scipy warn about this case, and scipy refuses a single row
    return bool(np.ptp(predicted) == 0 or np.ptp(true) == 0)


_METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
