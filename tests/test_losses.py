import math
from types import SimpleNamespace

import pytest
import torch

from lowbit.losses import IGNORED, hidden_distance, logit_distance, output_distance, token_losses


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
    kept = 2 * teacher[0, :3].square().sum()  # the other row's distance is 0
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


def outputs(rows=2, tokens=3, seed=0, **shapes):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    states = tuple(torch.randn(rows, tokens, 4, generator=generator) for _ in range(3))  # embeddings and two layers
    return SimpleNamespace(hidden_states=states, **values)


MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def test_outputs_without_a_head_are_compared_by_the_states_of_all_layers():
    student, teacher = outputs(seed=0), outputs(seed=1)
    layers = zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    expected = torch.stack([hidden_distance(*states, MASK) for states in layers]).mean()
    assert torch.equal(output_distance(student, teacher, MASK), expected)
    assert torch.equal(output_distance(student, teacher, MASK, hidden=0.5), 0.5 * expected)
    assert float(output_distance(teacher, teacher, MASK)) == 0


def test_logits_of_texts_and_of_tokens_are_compared():
    for shape in ((2, 5), (2, 3, 5)):
        student, teacher = outputs(seed=0, logits=shape), outputs(seed=1, logits=shape)
        rows = [logit_distance(student.logits[row], teacher.logits[row], 2.0) for row in ([0], [1])]
        if len(shape) == 3:  # the second text has one token
            rows = [
                logit_distance(student.logits[row, :n], teacher.logits[row, :n], 2.0) for row, n in ((0, 3), (1, 1))
            ]
        expected = torch.stack(rows).mean()
        found = output_distance(student, teacher, MASK, temperature=2.0, hidden=0.0)
        torch.testing.assert_close(found, expected)
        if len(shape) == 3:  # what is said of padding does not count
            student.logits[1, 2] += 1
            torch.testing.assert_close(output_distance(student, teacher, MASK, temperature=2.0, hidden=0.0), found)


def test_a_decoder_with_inputs_of_its_own_is_compared_at_each_of_them():
    student, teacher = outputs(seed=0, logits=(2, 7, 5)), outputs(seed=1, logits=(2, 7, 5))
    expected = logit_distance(student.logits.flatten(0, 1), teacher.logits.flatten(0, 1))
    torch.testing.assert_close(output_distance(student, teacher, MASK, hidden=0.0), expected)


def test_both_ends_of_an_answer_are_compared():
    student = outputs(seed=0, start_logits=(2, 3), end_logits=(2, 3))
    teacher = outputs(seed=1, start_logits=(2, 3), end_logits=(2, 3))
    expected = sum(logit_distance(getattr(student, n), getattr(teacher, n)) for n in ("start_logits", "end_logits"))
    torch.testing.assert_close(output_distance(student, teacher, MASK, hidden=0.0), expected)


@pytest.mark.parametrize("logits", [False, True])
def test_both_stacks_are_compared_by_their_states(logits):
    """What the decoder sees of padding counts where it has inputs of its own."""
    encoder, decoder, mask = gaussian(2, 3, 8), gaussian(2, 5, 8, seed=1), torch.ones(2, 3)
    teacher = SimpleNamespace(encoder_hidden_states=(0, encoder), decoder_hidden_states=(0, decoder))
    student = SimpleNamespace(encoder_hidden_states=(0, encoder), decoder_hidden_states=(0, 1.1 * decoder))
    if logits:
        teacher.logits = student.logits = gaussian(2, 4, seed=2)
    assert output_distance(student, teacher, mask).item() == pytest.approx(0.005, rel=1e-4)
    assert output_distance(student, teacher, mask, hidden=2.0).item() == pytest.approx(0.01, rel=1e-4)
    student.encoder_hidden_states, student.decoder_hidden_states = (0, 1.2 * encoder), (0, decoder)
    assert output_distance(student, teacher, mask).item() == pytest.approx(0.02, rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 5), (4, 6, 5), (4, 3, 5)])
def test_halves_of_a_batch_have_its_distance_as_their_mean(shape):
    """Whatever the lengths of its rows."""
    student, teacher = (outputs(4, 6, seed=seed, logits=shape) for seed in (0, 1))
    mask = (torch.arange(6) < torch.tensor([6, 1, 2, 4])[:, None]).long()

    def half(output, part):
        states = tuple(layer[part] for layer in output.hidden_states)
        return SimpleNamespace(hidden_states=states, logits=output.logits[part])

    parts = [slice(2), slice(2, 4)]
    halves = [output_distance(half(student, part), half(teacher, part), mask[part]) for part in parts]
    torch.testing.assert_close(torch.stack(halves).mean(), output_distance(student, teacher, mask))
