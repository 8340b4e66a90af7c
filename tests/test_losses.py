import math

import pytest
import torch

from lowbit.losses import IGNORED, hidden_distance, logit_distance, token_losses


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_logits_by_hand():
    """KL of (1/2, 1/2) to a teacher of (3/4, 1/4)."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert logit_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    rows = logit_distance(student.expand(4, 2), torch.cat([teacher, student, student, student]))
    assert rows.item() == pytest.approx(expected / 4, rel=1e-5)


def test_equal_logits_have_no_distance_and_what_all_share_does_not_count():
    logits = gaussian(5, 3)
    assert logit_distance(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert logit_distance(logits + 7, logits - 2).item() == pytest.approx(0, abs=1e-6)
    assert logit_distance(logits, gaussian(5, 3, seed=1)) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_probabilities(temperature):
    student, teacher = gaussian(5, 3).requires_grad_(), gaussian(5, 3, seed=1)
    logit_distance(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / 5)


def test_one_output_is_a_regression():
    student, teacher = gaussian(6, 1), gaussian(6, 1, seed=1)
    torch.testing.assert_close(logit_distance(student, teacher), (student - teacher).square().mean())


def test_hidden_states_by_hand():
    teacher, mask = gaussian(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert hidden_distance(teacher, teacher, mask) == 0
    assert hidden_distance(torch.zeros_like(teacher), teacher, mask).item() == pytest.approx(1)
    torch.testing.assert_close(hidden_distance(1.1 * teacher, teacher, mask), torch.tensor(0.01))
    student = teacher.clone()
    student[0, 0, 0] += 3
    kept = teacher[mask.bool()].square().sum()
    torch.testing.assert_close(hidden_distance(student, teacher, mask), 9 / kept)


def test_padding_has_no_part_in_it():
    student, teacher = gaussian(2, 4, 8).requires_grad_(), gaussian(2, 4, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    distance = hidden_distance(student, teacher, mask)
    distance.backward()
    assert ((student.grad != 0).all(dim=-1) == mask.bool()).all()
    teacher[~mask.bool()] = 100.0
    assert torch.equal(hidden_distance(student, teacher, mask), distance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_distances_are_float32(dtype):
    student, teacher = gaussian(2, 4, 8).to(dtype), gaussian(2, 4, 8, seed=1).to(dtype)
    mask = torch.ones(2, 4, dtype=torch.long)
    wide = hidden_distance(student.float(), teacher.float(), mask), logit_distance(student.float(), teacher.float())
    assert hidden_distance(student, teacher, mask) == wide[0]
    assert logit_distance(student, teacher) == wide[1]


def test_token_losses_skip_what_is_not_scored():
    logits, labels = gaussian(2, 3, 5), torch.tensor([[1, IGNORED, 4], [IGNORED, 0, IGNORED]])
    expected = [-logits[row, token].log_softmax(-1)[labels[row, token]] for row, token in ((0, 0), (0, 2), (1, 1))]
    torch.testing.assert_close(token_losses(logits, labels), torch.stack(expected))
