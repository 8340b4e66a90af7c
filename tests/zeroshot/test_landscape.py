import pytest
import torch

from lowbit.errors import SchemeError
from lowbit.zeroshot.landscape import landscape, sharpness
from lowbit.zeroshot.sam import Ball, Target


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def bowl():
    """A quadratic loss of one weight, by way of an offset."""
    weight, offset, center = gaussian(3, 4), torch.zeros(3, 4), gaussian(3, 4, seed=1)
    calls = []

    def loss():
        calls.append((weight + offset).detach().clone())
        return (weight + offset - center).square().sum()

    return loss, [Target(offset, lambda: weight)], weight, calls


@pytest.mark.parametrize("axes", [1, 2])
def test_a_slice_goes_along_directions_as_long_as_the_rows(bowl, axes):
    loss, targets, weight, calls = bowl
    found = landscape(loss, targets, radius=0.5, points=5, axes=axes)
    assert found["at"] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    middle = found["loss"][2] if axes == 1 else found["loss"][2][2]
    assert middle == pytest.approx(float(loss()))
    assert len(calls) == 5**axes + 1
    ends = calls[0] - weight if axes == 1 else calls[2] - weight  # a second axis at 0
    torch.testing.assert_close(ends.norm(dim=1), 0.5 * weight.norm(dim=1))
    assert torch.equal(targets[0].tensor, torch.zeros(3, 4))


def test_a_slice_of_a_bowl_is_a_parabola_that_depends_on_the_seed(bowl):
    loss, targets, *_ = bowl
    values = landscape(loss, targets, points=5)["loss"]
    second = [values[i] - 2 * values[i + 1] + values[i + 2] for i in range(3)]
    assert second == pytest.approx([second[0]] * 3, rel=1e-3)
    assert landscape(loss, targets, points=5)["loss"] == values
    assert landscape(loss, targets, points=5, seed=1)["loss"] != values


@pytest.mark.parametrize("wrong", [{"axes": 3}, {"points": 4}, {"points": 1}, {"radius": 0.0}])
def test_other_slices_are_refused(bowl, wrong):
    with pytest.raises(SchemeError, match="a slice has 1 or 2 axes"):
        landscape(bowl[0], bowl[1], **wrong)


def test_the_highest_point_of_a_ball_around_a_bowl_is_opposite_its_center(bowl):
    loss, targets, *_ = bowl
    found = sharpness(loss, targets, Ball(rho=0.3))
    distance = found["loss"] ** 0.5
    assert found["largest"] == pytest.approx((distance + 0.3) ** 2, rel=1e-5)
    assert found["sharpness"] == pytest.approx(found["largest"] - found["loss"])
    assert torch.equal(targets[0].tensor, torch.zeros(3, 4))
    assert not targets[0].tensor.requires_grad


def test_more_steps_find_a_higher_point_where_the_gradient_turns():
    weight, curve = torch.tensor([[1.0, 0.05]]), torch.tensor([[1.0, 40.0]])
    offset = torch.zeros_like(weight)

    def loss():
        return ((weight + offset).square() * curve).sum()

    targets = [Target(offset, lambda: weight)]
    one, many = (sharpness(loss, targets, Ball(rho=0.5), steps=steps)["largest"] for steps in (1, 8))
    assert many > 1.05 * one
