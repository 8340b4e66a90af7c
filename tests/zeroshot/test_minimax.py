import copy
import math
import random

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lowbit.errors import SchemeError
from lowbit.zeroshot import Ball, Counts, SamSga, Target
from tests.tiny import random_states
from tests.zeroshot.players import Game, randn

INPUTS = randn(8, 4, seed=3)
NAN = float("nan")


def test_a_descent_takes_the_gradient_at_the_perturbed_rounded_weight():
    """Two steps of AdamW, against the same computed without the core."""
    game, other = Game(), Game()
    for _ in range(2):
        found = game.core.descend(lambda: game.loss(INPUTS))
        other.student.offset.requires_grad_(True)
        loss = other.loss(INPUTS)
        (gradient,) = torch.autograd.grad(loss, other.student.offset)
        other.student.offset = 0.1 * gradient / gradient.norm()
        perturbed = other.loss(INPUTS)
        other.minimizer.zero_grad()
        perturbed.backward()
        other.minimizer.step()
        other.student.offset = torch.zeros(3, 4)
        assert found.loss == pytest.approx(loss.item())
        assert found.perturbed_loss == pytest.approx(perturbed.item())
        assert found.sharpness == pytest.approx(perturbed.item() - loss.item(), rel=1e-3)
        torch.testing.assert_close(game.student.latent, other.student.latent)
    assert not torch.equal(game.student.latent, randn(3, 4))
    assert torch.equal(game.generator, randn(4, 4, seed=2))


def test_rounding_swallows_a_perturbation_of_the_latent_weight():
    """A ball smaller than the way to the next level: no effect on the loss from before rounding, one from after it."""
    sharpness = {}
    for targets in ("latent", "rounded"):
        game = Game(Ball(1e-3), targets=targets)
        distances = 0.25 - (game.student.latent - game.student.rounded()).detach().abs()
        assert float(distances.min()) > 1e-3
        sharpness[targets] = game.core.descend(lambda game=game: game.loss(INPUTS)).sharpness
    assert sharpness["latent"] == 0
    assert sharpness["rounded"] > 1e-4


@pytest.mark.parametrize("targets", ["latent", "rounded"])
def test_nothing_is_left_of_the_perturbation(targets):
    """Without learning, a step changes no byte of the model."""
    game = Game(Ball(2.0), targets=targets, learning_rate=0.0)
    game.minimizer.param_groups[0]["weight_decay"] = 0.0
    before = game.state()[:3]
    assert game.core.descend(lambda: game.loss(INPUTS)).sharpness != 0
    assert game.state()[:3] == before
    assert not game.student.offset.requires_grad
    assert game.student.latent.requires_grad
    assert game.student.latent.grad is None


def test_a_radius_of_zero_is_the_optimizer_alone():
    game, other, calls = Game(Ball(0.0)), Game(), []

    def loss():
        calls.append(1)
        return game.loss(INPUTS)

    found = game.core.descend(loss)
    other.loss(INPUTS).backward()
    other.minimizer.step()
    assert len(calls) == 1
    assert (found.perturbed_loss, found.sharpness) == (None, 0)
    assert torch.equal(game.student.latent, other.student.latent)


def test_an_ascent_raises_the_loss_and_moves_the_maximising_player_only():
    game = Game()
    (gradient,) = torch.autograd.grad(game.loss(INPUTS), game.generator)
    before = game.loss(INPUTS).item()
    assert game.core.ascend(lambda: game.loss(INPUTS)) == pytest.approx(before)
    assert game.loss(INPUTS).item() > before
    torch.testing.assert_close(game.generator.detach(), randn(4, 4, seed=2) + 0.02 * gradient)
    assert torch.equal(game.student.latent, randn(3, 4))
    assert game.generator.grad is None


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_can_ascend(optimizer):
    game = Game()
    core = SamSga(game.minimizer, optimizer([game.generator], 0.01, maximize=True))
    before = core.ascend(lambda: game.loss(INPUTS))
    assert game.loss(INPUTS).item() > before


@pytest.mark.parametrize(("ratio", "ascents"), [(1, 7), (3, 2), (8, 0)])
def test_the_ratio_is_that_of_descents_to_ascents(ratio, ascents):
    game = Game(ratio=ratio)
    for _ in range(7):
        game.step(INPUTS)
    assert game.core.counts == Counts(descents=7, ascents=ascents)


def test_without_a_maximizer_no_ascent_is_due_and_none_is_made():
    game = Game()
    core = SamSga(game.minimizer)
    core.descend(lambda: game.loss(INPUTS))
    assert not core.ascent_due
    with pytest.raises(SchemeError, match="nobody maximises; give SamSga a maximizer"):
        core.ascend(lambda: game.loss(INPUTS))


@pytest.mark.parametrize("added", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1])
def test_a_loss_that_is_not_finite_changes_nothing(added, at):
    """In the first pass, and in the second; its gradient is finite all the same."""
    game, calls = Game(), []

    def loss():
        calls.append(1)
        return game.loss(INPUTS) + (added if len(calls) == at + 1 else 0)

    game.step(INPUTS)
    before = game.state()
    found = game.core.descend(loss)
    assert len(calls) == at + 1
    assert not math.isfinite(found.loss if at == 0 else found.perturbed_loss)
    assert game.state() == before
    assert not math.isfinite(game.core.ascend(lambda: game.loss(INPUTS) + added))
    assert game.state() == before
    assert game.core.counts == Counts(descents=2, ascents=2, skipped_descents=1, skipped_ascents=1)
    game.step(INPUTS)
    assert game.state() != before


def infinite_gradient(tensor):
    """0 with a gradient of infinity for the first element."""
    return (tensor.flatten()[0] - tensor.flatten()[0].detach()).clamp_min(0).sqrt()


def test_a_gradient_that_is_not_finite_changes_nothing():
    game = Game()
    game.step(INPUTS)
    before = game.state()
    for tensor in (game.student.offset, game.student.latent):
        found = game.core.descend(lambda tensor=tensor: game.loss(INPUTS) + infinite_gradient(tensor))
        assert math.isfinite(found.loss)
    game.core.ascend(lambda: game.loss(INPUTS) + infinite_gradient(game.generator))
    assert game.state() == before
    assert game.core.counts == Counts(3, 2, 2, 1)


def test_both_passes_draw_alike_every_step_anew_and_the_callers_states_stay():
    game, drawn = Game(), []

    def loss():
        drawn.append((torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()))
        return game.loss(INPUTS)

    before = random_states()
    for _ in range(2):
        game.core.descend(loss)
        game.core.ascend(loss)
    assert random_states() == before
    (one, again, ascent), (two, again_two, ascent_two) = drawn[:3], drawn[3:]
    assert one == again
    assert two == again_two
    different = [one, two, ascent, ascent_two]
    assert all(first != second for at, first in enumerate(different) for second in different[:at])
    assert torch.rand(2).tolist() != torch.rand(2).tolist()


def play(game, steps, *, noise=1.0):
    for _ in range(steps):
        game.core.descend(lambda: game.loss(INPUTS + noise * torch.randn(8, 4)))
        game.core.ascend(lambda: game.loss(INPUTS + noise * torch.randn(8, 4)))
    return game


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    one = play(Game(seed=1), 3).state()
    torch.rand(5)
    assert play(Game(seed=1), 3).state() == one
    assert play(Game(seed=2), 3).state() != one


def test_a_run_goes_on_from_its_counts():
    whole, first, second = play(Game(), 5), play(Game(), 2), Game()
    for name in ("student", "minimizer", "maximizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    second.generator.data.copy_(first.generator.data)
    second.core.counts = copy.copy(first.core.counts)
    assert play(second, 3).state() == whole.state()


def test_a_tensor_that_the_loss_does_not_use_is_no_error():
    game, unused = Game(), torch.zeros(2)
    core = SamSga(game.minimizer, targets=[game.student.target(), Target(unused, lambda: unused)], ball=Ball(0.1))
    expected = Game()
    core.descend(lambda: game.loss(INPUTS))
    expected.core.descend(lambda: expected.loss(INPUTS))
    assert torch.equal(game.student.latent, expected.student.latent)
    assert torch.equal(unused, torch.zeros(2))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_same_step_or_an_error(reentrant):
    """Reentrant ones hide the weights from autograd; without an error nothing would ever be trained."""
    game, expected = Game(), Game()

    def loss():
        return checkpoint(game.loss, INPUTS.clone().requires_grad_(), use_reentrant=reentrant)

    if reentrant:
        with pytest.raises(SchemeError, match="uses nothing that is to be changed; gradient checkpointing must not be"):
            game.core.descend(loss)
        return
    game.core.descend(loss)
    expected.core.descend(lambda: expected.loss(INPUTS))
    assert torch.equal(game.student.latent, expected.student.latent)


def test_optimizers_of_the_wrong_direction_and_ratios_below_one_are_refused():
    game = Game()
    with pytest.raises(SchemeError, match="the minimizer SGD steps the wrong way; make it with maximize=False"):
        SamSga(game.maximizer)
    with pytest.raises(SchemeError, match="the maximizer AdamW steps the wrong way; make it with maximize=True"):
        SamSga(game.minimizer, game.minimizer)
    with pytest.raises(SchemeError, match="0 descents per ascent; use 1 or more"):
        SamSga(game.minimizer, ratio=0)
