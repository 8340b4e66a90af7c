import itertools
import math

import pytest

from lowbit.loop import rate_by_step


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
def test_the_learning_rate_rises_and_falls(steps):
    factor = rate_by_step("linear", 0.06, steps)
    rates = [factor(step) for step in range(steps + 1)]
    peak = rates.index(1.0)
    assert peak == math.ceil(0.06 * steps) - 1
    assert rates[-1] == 0 < min(rates[:-1])
    for part, sign in ((rates[: peak + 1], 1), (rates[peak:], -1)):
        moves = [sign * (after - before) for before, after in itertools.pairwise(part)]
        assert moves == pytest.approx([max(moves, default=0)] * len(moves))
        assert all(move > 0 for move in moves)
