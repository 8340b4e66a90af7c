"""One stored label value to one class index or number."""

import math
from collections.abc import Sequence
from typing import Any

from lowbit.errors import DataError


def to_class(value: Any, known: Sequence[str], where: str) -> int:
    """The position of a label in ``known``."""
    name = label_text(value, where)
    if name not in known:
        raise DataError(f"{where}: label {name!r} is not one of {', '.join(known)}; correct this row")
    return known.index(name)


def label_text(value: Any, where: str) -> str:
    """A label as text; JSON integers count as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {value!r} is no label; write a text or an integer")
    return value


def to_score(value: Any, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from ``low`` to ``high``."""
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not (math.isfinite(score) and low <= score <= high):
        bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise DataError(f"{where}: {value!r} is not a number{bounds}; correct this row")
    return score
