"""The minimax study: the problem is what it is said to be, the steps are SamSga's, and the controls fail."""

from pathlib import Path

import numpy as np
import pytest
import sam_sga_convergence as convergence
import sam_sga_plot
import torch
from rows import RESULTS, read_rows
from sam_sga_tables import sam_sga, within_bound

from lowbit.zeroshot import Ball, SamSga, Target
from tests.benchmarks.test_tables import body, write

DOCS = Path(__file__).resolve().parents[2] / "docs"
HORIZONS = tuple(2**power for power in range(8, 13))


@pytest.fixture(scope="module")
def game():
    return convergence.make_game()


def value(game, x, y):
    """f(x, y), of vectors of torch."""
    coupling, shift, inner = (torch.from_numpy(array) for array in (game.coupling, game.shift, game.inner))
    waves = game.height * (1 - torch.cos(game.frequency * x)).sum()
    image = inner @ y
    return game.bowl / 2 * x.square().sum() + waves + (coupling @ x - shift) @ image - image.square().sum() / 2


def primal(game, x):
    """phi(x), by an inner maximisation of its own: least squares."""
    image = np.linalg.lstsq(game.inner, game.coupling @ x.detach().numpy() - game.shift, rcond=None)[0]
    return value(game, x, torch.from_numpy(image))


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_gradients_are_those_of_the_problem(game):
    for seed in range(3):
        x, y = (torch.from_numpy(vectors(6, seed=seed + 10 * player)).requires_grad_() for player in range(2))
        expected = torch.autograd.grad(value(game, x, y), [x, y])
        at = x.detach().numpy()[None], y.detach().numpy()[None]
        np.testing.assert_allclose(game.descent(*at)[0], expected[0])
        np.testing.assert_allclose(game.ascent(*at)[0], expected[1])
        (expected,) = torch.autograd.grad(primal(game, x), x)
        np.testing.assert_allclose(game.primal(at[0])[0], expected)


def test_the_inner_problem_is_pl_but_not_strongly_concave(game):
    singular = np.linalg.svd(game.inner, compute_uv=False)
    assert (singular > 1e-9).sum() == 3 < len(singular)
    for seed in range(20):
        x, y = vectors(6, seed=seed), 3 * vectors(6, seed=100 + seed)
        gap = primal(game, torch.from_numpy(x)) - value(game, torch.from_numpy(x), torch.from_numpy(y))
        assert np.square(game.ascent(x[None], y[None])).sum() >= 2 * 0.6**2 * float(gap) > 0


def test_the_primal_function_is_coercive_and_not_convex(game):
    top = torch.full((6,), np.pi / game.frequency, dtype=torch.float64)
    low, middle, high = (float(primal(game, top + shift)) for shift in (-0.3, 0.0, 0.3))
    assert middle > (low + high) / 2
    for direction in vectors(20, 6):
        far = torch.from_numpy(100 * direction / np.linalg.norm(direction))
        assert float(primal(game, far)) > game.bowl / 2 * 100**2


@pytest.mark.parametrize("method", [*convergence.MEETING, "no ascent", "large fixed rho"])
def test_the_steps_are_those_of_the_core(game, method):
    rates = convergence.rates(method, 256)
    x, y, noise = vectors(1, 6), vectors(1, 6, seed=1), vectors(20, 2, 1, 6, seed=2)
    outer, inner = (torch.from_numpy(start[0].copy()).requires_grad_() for start in (x, y))
    core = SamSga(
        torch.optim.SGD([outer], rates.descent),
        torch.optim.SGD([inner], rates.ascent, maximize=True),
        targets=[Target(outer)],
        ball=Ball(rates.rho),
    )
    for both in noise:
        disturbed = [torch.from_numpy(part[0]) for part in both]
        loss = lambda by=disturbed: value(game, outer, inner) + by[0] @ outer + by[1] @ inner  # noqa: E731
        core.descend(loss)
        core.ascend(loss)
        x, y = convergence.step(game, x, y, rates, (both[0], both[1]))
        np.testing.assert_allclose(outer.detach(), x[0], rtol=1e-12)
        np.testing.assert_allclose(inner.detach(), y[0], rtol=1e-12)


@pytest.mark.parametrize("method", convergence.METHODS)
def test_short_runs_keep_to_the_bound_and_the_controls_do_not(game, method):
    row = convergence.study(game, method, HORIZONS, seeds=16)
    if method in convergence.MEETING:
        assert within_bound(row)
        assert row["slope_high"] < -0.45
        assert row["means"][-1] < 1
    else:
        assert not within_bound(row)
        assert row["slope_low"] > -0.15
        assert row["means"][-1] > 10


def test_a_run_depends_on_nothing_but_its_arguments(game):
    one = convergence.run(game, "SAM-SGA", 64, seeds=4)
    np.random.rand()
    assert np.array_equal(convergence.run(game, "SAM-SGA", 64, seeds=4), one)
    assert len(set(one)) == 4


def test_the_slope_is_that_of_a_power_and_the_interval_that_of_its_scatter():
    horizons, scatter = np.array([10, 100, 1000]), np.exp(vectors(3, 400))
    exact = 5 * horizons[:, None] ** -0.7 * np.ones((3, 8))
    assert convergence.slope(horizons, exact) == pytest.approx((-0.7, -0.7, -0.7))
    found, low, high = convergence.slope(horizons, exact[:, :1] * scatter)
    assert low < found < high
    assert low < -0.7 < high
    assert high - low < 0.2


def test_a_run_that_overflows_is_none(game):
    row = convergence.study(game, "reversed ascent", (64, 16384), seeds=2)
    assert row["means"][0] > 1e6
    assert row["means"][1] is None
    assert row["slope"] is None
    assert not within_bound(row)


ROW = {"method": "SGDA", "horizons": [64, 128], "means": [2.0, 1.0], "slope": -0.55, "slope_low": -0.6}
ROW |= {"slope_high": -0.52, "date": "2026-01-01"}


def test_the_table_has_the_newest_row_of_a_method(results):
    none = {"slope": None, "slope_low": None, "slope_high": None, "means": [1e30, None]}
    slow = {"slope": -0.3, "slope_low": -0.4, "slope_high": -0.2}
    rows = [ROW | {"slope": 1.0}, ROW, ROW | slow | {"method": "slow"}, ROW | none | {"method": "reversed"}]
    write(results / "sam_sga.jsonl", rows)
    assert body(sam_sga(results)) == [
        ["SGDA", "-0.550", "-0.600 to -0.520", "64", "2", "128", "1", "yes"],
        ["slow", "-0.300", "-0.400 to -0.200", "64", "2", "128", "1", "no"],
        ["reversed", "diverges", "–", "64", "1e+30", "128", "–", "no"],
    ]


def test_a_missing_file_gives_a_line_of_dashes(results):
    assert set(body(sam_sga(results))[0]) == {"–"}


def test_the_plot_shows_every_method_and_says_what_is_above_its_frame():
    rows = [ROW, ROW | {"method": "SAM-SGA"}, ROW | {"method": "reversed ascent", "means": [1e30, None]}]
    drawn = sam_sga_plot.plot(rows)
    assert drawn.count("<circle") == 4
    assert drawn.count("<polyline") == 2
    for text in (">SGDA<", ">SAM-SGA<", ">reversed ascent (above the frame)<", ">64<", ">128<"):
        assert text in drawn


def test_documents_show_the_committed_rows(tmp_path):
    assert {row["method"] for row in read_rows(RESULTS / "sam_sga.jsonl")} == set(convergence.METHODS)
    assert sam_sga(RESULTS) in (DOCS / "zeroshot.md").read_text(encoding="utf-8")
    sam_sga_plot.draw(RESULTS, tmp_path / "images" / "plot.svg")
    drawn = (tmp_path / "images" / "plot.svg").read_text(encoding="utf-8")
    assert drawn == (DOCS / "images" / "sam_sga.svg").read_text(encoding="utf-8")
