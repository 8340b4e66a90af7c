"""How learning rates rise and fall."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("linear", "cosine", "constant")


def rate_by_step(schedule: str, warmup: float, steps: int) -> Callable[[int], float]:
    """Part of the full learning rate by step, counted from 0: a linear rise to 1, then a fall to 0 after the last.

    ``warmup`` is the part of the steps in which it rises.
    """
    rising = max(1, math.ceil(warmup * steps))

    def factor(step: int) -> float:
        rise, fall = (step + 1) / rising, (steps - step) / (steps - rising + 1)
        if schedule == "cosine":
            fall = (1 - math.cos(math.pi * fall)) / 2
        return min(rise, 1.0 if schedule == "constant" else fall)

    return factor
