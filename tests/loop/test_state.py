import math

import pytest
import torch
from torch import nn

from lowbit.loop import TrainingState


class Toy:
    """Two parameters, of which one gets gradients, trained step by step on fixed numbers."""

    def __init__(self):
        self.parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
        groups = [{"params": [parameter], "lr": 0.1} for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.state = TrainingState(self.optimizer)

    def steps(self, count):
        for _ in range(count):
            self.state.step += 1
            self.parameters[0].grad = torch.tensor([1.0, -2.0, 0.5]) / self.state.step
            self.optimizer.step()
        return self

    def values(self):
        return [parameter.detach().clone() for parameter in self.parameters]


def test_a_restored_state_goes_on_as_the_first_would_have():
    expected = Toy().steps(5).values()
    first = Toy().steps(2)
    first.state.judge(0.5)
    second = Toy()
    second.state.restore(first.state.counters(), {name: t.clone() for name, t in first.state.tensors().items()})
    assert second.state.counters() == {"step": 2, "misses": 0, "best_step": 2, "best_loss": 0.5}
    assert all(map(torch.equal, second.steps(3).values(), expected))
    second.state.take_best()
    assert all(map(torch.equal, second.values(), Toy().steps(2).values()))


def test_tensors_are_those_of_what_is_trained():
    toy = Toy().steps(1)
    assert set(toy.state.tensors()) == {"0.value", "1.value", "0.step", "0.exp_avg", "0.exp_avg_sq"}
    toy.state.judge(1.0)
    assert set(toy.state.tensors()) >= {"0.best", "1.best"}


def test_the_lowest_loss_is_kept():
    toy = Toy()
    for loss, misses, best_step in [(0.9, 0, 1), (0.5, 0, 2), (0.5, 1, 2), (math.nan, 2, 2), (0.4, 0, 5), (0.6, 1, 5)]:
        toy.steps(1).state.judge(loss)
        assert (toy.state.misses, toy.state.best_step) == (misses, best_step)
    assert toy.state.best_loss == 0.4
    toy.state.take_best()
    assert torch.equal(toy.values()[0], Toy().steps(5).values()[0])


@pytest.mark.parametrize("losses", [[], [math.nan]])
def test_without_a_loss_the_last_values_stay(losses):
    toy = Toy().steps(2)
    for loss in losses:
        toy.state.judge(loss)
    before = toy.values()
    toy.state.take_best()
    assert all(map(torch.equal, toy.values(), before))
