"""Two processes on half batches against one on the whole batch."""

import os

import pytest
import torch
from torch import distributed

from lowbit.zeroshot import Ball
from tests.apart import CONTEXT, free_port, zeroshot_apart
from tests.models import stored
from tests.zeroshot.players import Game, randn
from tests.zeroshot.runs import chosen

STEPS, ROWS = 4, 8
BALLS = [Ball(0.3), Ball(0.3, per_tensor=True), Ball(0.02, adaptive=True, relative=True)]


def play(ball, part=slice(None), broken=None):
    """Student, generator, losses and counts after some steps on a part of each batch; one loss may be broken."""
    game, losses = Game(ball), []
    for step in range(STEPS):
        inputs = randn(ROWS, 4, seed=10 + step)[part]
        factor = float("nan") if step == broken else 1.0
        found = game.core.descend(lambda inputs=inputs, factor=factor: game.loss(inputs) * factor)
        losses += [found.loss, found.perturbed_loss]
        losses.append(game.core.ascend(lambda inputs=inputs: game.loss(inputs)))
    return game.student.latent.tolist(), game.generator.tolist(), losses, vars(game.core.counts)


def _work(rank, port, ball, broken, sender):
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    half = ROWS // 2
    sender.send(play(ball, slice(rank * half, (rank + 1) * half), broken if rank == 1 else None))
    distributed.destroy_process_group()


def play_apart(ball, broken=None):
    """What two processes have after the same steps, each on its half; the second one's loss may be broken."""
    port, jobs = free_port(), []
    for rank in range(2):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        job = CONTEXT.Process(target=_work, args=(rank, port, ball, broken, sender))
        job.start()
        sender.close()
        jobs.append((job, receiver))
    results = [receiver.recv() for _, receiver in jobs]
    for job, _ in jobs:
        job.join()
    return results


@pytest.mark.parametrize("ball", BALLS)
def test_two_processes_on_halves_do_what_one_does_on_the_whole(ball):
    first, second = play_apart(ball)
    assert first == second
    expected = play(ball)
    for values, wanted in zip(first[:3], expected[:3], strict=True):
        torch.testing.assert_close(torch.tensor(values), torch.tensor(wanted))
    assert first[3] == expected[3]


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_both():
    first, second = play_apart(Ball(0.3), broken=1)
    assert first[:2] == second[:2]
    assert first[3] == second[3]
    assert first[3]["skipped_descents"] == 1
    assert torch.tensor(first[0]).isfinite().all()


@pytest.mark.parametrize(("arch", "class_name"), [("bert", "BertForSequenceClassification"), ("opt", "OPTForCausalLM")])
def test_a_whole_run_in_two_processes(tiny, tmp_path, arch, class_name):
    """Rows of any length, in texts and in tokens."""
    settings = {"options": chosen(steps=2, evaluate_steps=2, learning_rate=1e-4)}
    model = tiny.model(arch, class_name)
    (alone,) = zeroshot_apart(model, tmp_path / "alone", "w2a8", **settings)
    first, second = zeroshot_apart(model, tmp_path / "both", "w2a8", processes=2, **settings)
    assert first["record"] == second["record"]
    assert first["reported"] == alone["reported"]
    assert second["reported"] == []
    for ours, theirs in zip(first["record"], alone["record"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    left, right = stored(tmp_path / "alone")[0], stored(tmp_path / "both")[0]
    names = [name for name in left if "norm" in name.lower()]
    assert len(names) >= 8
    for name in names:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=3e-4)
