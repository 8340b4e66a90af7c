"""The entropy of the rows that a batch uses."""

import math

import pytest
import torch

from lowbit.zeroshot import Mixture, row_entropy
from lowbit.zeroshot.embedding import straight_through

PRESENT = torch.tensor([[True, True, True], [True, False, False]])


def one_row_each(ids):
    ids = torch.tensor(ids)
    return Mixture(ids[..., None], torch.ones(*ids.shape, 1), PRESENT)


@pytest.mark.parametrize(
    ("ids", "entropy"),
    [
        ([[3, 4, 5], [6, 0, 0]], math.log(4)),
        ([[3, 3, 3], [3, 9, 8]], 0.0),  # what is absent does not count
        ([[3, 3, 4], [4, 0, 0]], math.log(2)),
        ([[3, 3, 3], [4, 0, 0]], math.log(4) - 0.75 * math.log(3)),
    ],
)
def test_the_entropy_of_the_shares(ids, entropy):
    assert float(row_entropy(one_row_each(ids))) == pytest.approx(entropy, abs=1e-6)


def test_soft_mixtures_share_their_weight():
    ids = torch.tensor([3, 4]).expand(2, 3, 2)
    mixture = Mixture(ids, torch.full((2, 3, 2), 0.5), PRESENT)
    assert float(row_entropy(mixture)) == pytest.approx(math.log(2))


def test_ascent_turns_a_repeated_hard_choice_into_others():
    logits = torch.tensor([2.0, 1.0, 0.0]).expand(2, 3, 3).clone()
    logits += 0.01 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_(True)
    ids = torch.tensor([3, 4, 5]).expand(2, 3, 3)

    def mixture():
        weights, order = torch.softmax(logits, -1).sort(descending=True)
        return Mixture(ids.gather(-1, order), straight_through(weights), PRESENT)

    assert float(row_entropy(mixture()).detach()) == 0
    optimizer = torch.optim.SGD([logits], 1.0, maximize=True)
    best = 0.0
    for _ in range(20):
        optimizer.zero_grad()
        entropy = row_entropy(mixture())
        entropy.backward()
        optimizer.step()
        best = max(best, float(entropy.detach()))
    assert best > 0.5
