import math

import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.zeroshot import Ball, Target
from lowbit.zeroshot.sam import perturbations, perturbed, requiring_gradients

WEIGHTS = [torch.tensor([1.0, -2.0]), torch.tensor([[0.0], [0.5]])]
GRADIENTS = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0], [12.0]])]
# Lengths: gradients 3 and sqrt(160), together 13; w * g 3 and 6, together sqrt(45); weights sqrt(5) and 0.5.
BOTH, SECOND = math.sqrt(5.25), math.sqrt(160)


@pytest.mark.parametrize(
    ("ball", "expected"),
    [
        (Ball(0.1), [[0.3 / 13, 0], [0.4 / 13, 1.2 / 13]]),
        (Ball(0.1, relative=True), [[0.3 * BOTH / 13, 0], [0.4 * BOTH / 13, 1.2 * BOTH / 13]]),
        (Ball(0.1, per_tensor=True), [[0.1, 0], [0.4 / SECOND, 1.2 / SECOND]]),
        (Ball(0.1, per_tensor=True, relative=True), [[0.1 * math.sqrt(5), 0], [0.2 / SECOND, 0.6 / SECOND]]),
        (Ball(0.1, adaptive=True), [[0.3 / math.sqrt(45), 0], [0, 0.3 / math.sqrt(45)]]),
        (Ball(0.1, adaptive=True, relative=True), [[0.3 * math.sqrt(3 / 45), 0], [0, 0.3 * math.sqrt(3 / 45)]]),
        (Ball(0.1, adaptive=True, per_tensor=True), [[0.1, 0], [0, 0.05]]),
        (Ball(0.1, True, True, True), [[0.1 * math.sqrt(2), 0], [0, 0.05]]),
    ],
)
def test_perturbations_are_those_computed_by_hand(ball, expected):
    found = perturbations([Target(weight) for weight in WEIGHTS], GRADIENTS, ball)
    for change, values, weight in zip(found, expected, WEIGHTS, strict=True):
        torch.testing.assert_close(change.flatten(), torch.tensor(values))
        assert change.shape == weight.shape


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_raises_the_loss_most_within_its_ball(adaptive):
    """No other one of the same length, in the units of the ball, has a larger product with the gradient."""
    generator = torch.Generator().manual_seed(0)
    weight, gradient, others = (torch.randn(size, generator=generator) for size in ((5,), (5,), (500, 5)))
    (change,) = perturbations([Target(weight)], [gradient], Ball(0.3, adaptive=adaptive))
    unit = weight.abs() if adaptive else torch.ones(5)
    assert float((change / unit).norm()) == pytest.approx(0.3)
    others = others * (0.3 / others.norm(dim=1, keepdim=True)) * unit
    assert bool((others @ gradient < change @ gradient).all())


def test_weights_come_from_the_target_and_only_where_they_are_needed():
    asked = []

    def weight():
        asked.append(1)
        return torch.tensor([3.0, 4.0])

    targets, gradient = [Target(torch.zeros(2), weight)], torch.tensor([0.0, 2.0])
    perturbations(targets, [gradient], Ball(0.1))
    assert not asked
    (change,) = perturbations(targets, [gradient], Ball(0.1, relative=True))
    torch.testing.assert_close(change, torch.tensor([0.0, 0.5]))
    (change,) = perturbations(targets, [gradient], Ball(0.1, adaptive=True))
    torch.testing.assert_close(change, torch.tensor([0.0, 0.4]))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_gradient_of_zero_perturbs_nothing(adaptive, relative):
    ball = Ball(0.5, adaptive=adaptive, relative=relative)
    (change,) = perturbations([Target(torch.full((3,), 1e6))], [torch.zeros(3)], ball)
    assert torch.equal(change, torch.zeros(3))


def test_long_bfloat16_tensors_are_measured_in_float32():
    gradient = torch.ones(100_000, dtype=torch.bfloat16)
    (change,) = perturbations([Target(gradient)], [gradient], Ball(1.0))
    torch.testing.assert_close(
        change.float(), torch.full_like(change, 100_000**-0.5, dtype=torch.float32), rtol=2**-8, atol=0
    )


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_bytes_are_those_before(error):
    """Adding and subtracting would not give them back."""
    generator = torch.Generator().manual_seed(0)
    weight, offset, change = (
        torch.randn(1000, generator=generator),
        torch.zeros(3),
        torch.randn(1000, generator=generator),
    )
    before = weight.clone()
    assert not torch.equal(weight + change - change, weight)
    targets = [Target(weight), Target(offset, lambda: weight)]

    def inside():
        with perturbed(targets, [change, torch.tensor([1.0, -2.0, 3.0])]):
            assert torch.equal(weight, before + change)
            assert offset.tolist() == [1, -2, 3]
            if error is not None:
                raise error

    if error is None:
        inside()
    else:
        with pytest.raises(error):
            inside()
    assert weight.numpy().tobytes() == before.numpy().tobytes()
    assert offset.numpy().tobytes() == torch.zeros(3).numpy().tobytes()


def test_gradients_are_asked_for_inside_the_block_only():
    parameter, buffer = torch.nn.Parameter(torch.zeros(1)), torch.zeros(1)
    with requiring_gradients([parameter, buffer]):
        assert parameter.requires_grad
        assert buffer.requires_grad
    assert parameter.requires_grad
    assert not buffer.requires_grad


@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_a_radius_that_is_none_is_refused(rho):
    with pytest.raises(SchemeError, match="is no radius; use 0 or a positive number"):
        Ball(rho)
