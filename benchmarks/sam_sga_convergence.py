"""SAM-SGA on a minimax problem whose primal function is known; appends to results/sam_sga.jsonl and draws the plot.

    min over x, max over y of  f(x, y) = a/2 |x|^2 + g sum(1 - cos(w x)) + (B x - b) . A y - 1/2 |A y|^2

``A`` has a rank below the length of y, so f is concave in y but not strongly: it satisfies the Polyak-Lojasiewicz (PL)
inequality with the square of the smallest non-zero singular value of ``A``. With the projector P on the range of ``A``

    phi(x) = max over y of f(x, y) = a/2 |x|^2 + g sum(1 - cos(w x)) + 1/2 |P (B x - b)|^2

is coercive, smooth and not convex, and its gradient is exact. Gradients of both players carry Gaussian noise.

ZSAQ's theory (arXiv 2310.13315) promises a rate of O(1/sqrt(T)) for such problems; here, for the mean over the iterates
of |grad phi|^2. Both step sizes go with T^-1/2. A perturbation can bias |grad phi|^2 by order rho^2, so T^-1/4 is the
slowest fall of rho that leaves the rate alone in any case. There is one run per horizon T, and the slope of log mean
against log T must not exceed -1/2. Three controls must: without ascent, with the ascent reversed, and with a large rho
that does not depend on T. A small one that does not shows how much of that worst case is met here.

The steps are those of ``lowbit.zeroshot.SamSga``, written for all seeds at once; the tests hold the two together.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rows import RESULTS, append
from sam_sga_plot import draw

FILE = RESULTS / "sam_sga.jsonl"
HORIZONS = tuple(2**power for power in range(9, 17))
SEEDS = 32
DESCENT, ASCENT, RHO = 0.5, 2.0, 0.5  # step sizes times T^1/2, rho times T^1/4
FIXED_RHO = {"small fixed rho": 0.1, "large fixed rho": 1.0}  # from a well of the cosine to the next top it is pi / 3
NOISE = 0.5  # standard deviation in each coordinate
START = 3.0  # standard deviation of where x starts; y starts at 0
CHUNK = 1_024  # steps whose noise is drawn at once
RESAMPLES = 2_000


class Game:
    """The problem above; ``coupling`` B [range, x], ``shift`` b [range], ``inner`` A [range, y]."""

    bowl, height, frequency = 0.25, 1.0, 3.0  # a, g, w

    def __init__(self, coupling: np.ndarray, shift: np.ndarray, inner: np.ndarray) -> None:
        self.coupling, self.shift, self.inner = coupling, shift, inner
        projector = inner @ np.linalg.pinv(inner)
        self._descent, self._target, self._damping = inner.T @ coupling, shift @ inner, inner.T @ inner
        self._primal, self._offset = coupling.T @ projector @ coupling, shift @ projector @ coupling

    def descent(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Gradient in x, [seeds, x]."""
        return self._outer(x) + y @ self._descent

    def ascent(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Gradient in y, [seeds, y]."""
        return x @ self._descent.T - self._target - y @ self._damping

    def primal(self, x: np.ndarray) -> np.ndarray:
        """Gradient of phi, [seeds, x]."""
        return self._outer(x) + x @ self._primal - self._offset

    def _outer(self, x: np.ndarray) -> np.ndarray:
        return self.bowl * x + self.height * self.frequency * np.sin(self.frequency * x)


def make_game() -> Game:
    """Six coordinates for each player; three directions of y reach the loss."""
    random = np.random.default_rng(0)
    coupling, shift = random.standard_normal((5, 6)) / 6**0.5, 2 * random.standard_normal(5)
    left, right = (np.linalg.qr(random.standard_normal((size, size)))[0][:, :3] for size in (5, 6))
    return Game(coupling, shift, left * [0.6, 0.9, 1.2] @ right.T)


@dataclass(frozen=True)
class Rates:
    """Step sizes of both players and the radius of the perturbation; 0 leaves it out."""

    descent: float
    ascent: float
    rho: float


MEETING = ("SAM-SGA", "SGDA", "small fixed rho")
METHODS = (*MEETING, "no ascent", "reversed ascent", "large fixed rho")


def rates(method: str, horizon: int) -> Rates:
    """What a method uses for a run of so many steps."""
    ascent = {"no ascent": 0.0, "reversed ascent": -ASCENT}.get(method, ASCENT)
    rho = {"SGDA": 0.0, **FIXED_RHO}.get(method, RHO * horizon**-0.25)
    return Rates(DESCENT * horizon**-0.5, ascent * horizon**-0.5, rho)


def step(
    game: Game, x: np.ndarray, y: np.ndarray, rates: Rates, noise: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """x and y after one descent and one ascent, per seed; both passes of the descent see the same noise."""
    gradient = game.descent(x, y) + noise[0]
    if rates.rho:
        length = np.sqrt(np.square(gradient).sum(1, keepdims=True))
        gradient = game.descent(x + rates.rho * gradient / length, y) + noise[0]
    x = x - rates.descent * gradient
    if rates.ascent:
        y = y + rates.ascent * (game.ascent(x, y) + noise[1])
    return x, y


@np.errstate(over="ignore", invalid="ignore")
def run(game: Game, method: str, horizon: int, seeds: int = SEEDS) -> np.ndarray:
    """Mean over the iterates of |grad phi|^2, [seeds]; a seed starts alike in every run, its noise goes by horizon."""
    random, chosen = np.random.default_rng(horizon), rates(method, horizon)
    (_, width), (_, inner) = game.coupling.shape, game.inner.shape
    x = START * np.random.default_rng(0).standard_normal((seeds, width))
    y, total = np.zeros((seeds, inner)), np.zeros(seeds)
    for start in range(0, horizon, CHUNK):
        noise = NOISE * random.standard_normal((min(CHUNK, horizon - start), seeds, width + inner))
        for both in noise:
            total += np.square(game.primal(x)).sum(1)
            x, y = step(game, x, y, chosen, (both[:, :width], both[:, width:]))
    return total / horizon


def slope(horizons: Sequence[int], values: np.ndarray) -> tuple[float, float, float]:
    """Slope of log mean against log T, with its 95 % interval over resampled seeds; ``values`` [horizons, seeds]."""
    seeds = values.shape[1]
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    means = np.column_stack([values.mean(1), values[:, drawn].mean(2)])
    found = np.polyfit(np.log(horizons), np.log(means), 1)[0]
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return float(found[0]), float(low), float(high)


def study(game: Game, method: str, horizons: Sequence[int] = HORIZONS, seeds: int = SEEDS) -> dict:
    """The row of one method; a mean that overflows, and then the slope, is None."""
    start = time.perf_counter()
    values = np.stack([run(game, method, horizon, seeds) for horizon in horizons])
    finite = np.isfinite(values.mean(1))
    found = slope(horizons, values) if finite.all() else (None, None, None)
    row = {"method": method, "seeds": seeds, "horizons": list(horizons)}
    row |= {"means": [float(mean) if kept else None for mean, kept in zip(values.mean(1), finite, strict=True)]}
    row |= dict(zip(("slope", "slope_low", "slope_high"), found, strict=True))
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Run every method and draw the plot."""
    game = make_game()
    for method in METHODS:
        append(FILE, study(game, method))
    draw(RESULTS)


if __name__ == "__main__":
    main()
