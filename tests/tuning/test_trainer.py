import os
import tempfile

import pytest
import torch
from transformers import DataCollatorWithPadding

from lowbit.adapter import load_classifier
from lowbit.checkpoint import load_tokenizer
from lowbit.data import encode
from lowbit.errors import DataError
from lowbit.tuning import trainer
from lowbit.tuning.trainer import train
from tests.tiny import options, random_states, toy_rows


class Run:
    """A float BERT classifier, what it is trained on, and its state before."""

    def __init__(self, folder, rows=None):
        self.model, _ = load_classifier(folder, ("no", "yes"), seed=0)
        self.tokenizer = load_tokenizer(folder)
        self.rows = encode(rows or toy_rows(), self.tokenizer, 16)
        self.before = self.state()

    def state(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def groups(self, *rates):
        """The classifier with the first rate, the encoder with the second, if any; embeddings in no group."""
        parts = (self.model.classifier, self.model.bert.encoder)
        return [{"params": list(part.parameters()), "lr": rate} for part, rate in zip(parts, rates, strict=False)]

    def train(self, *rates, progress=None, **changes):
        result = train(
            self.model,
            self.rows,
            self.groups(*rates),
            options(**changes),
            collate=DataCollatorWithPadding(self.tokenizer),
            progress=progress,
        )
        assert result.seconds > 0
        return self.state()

    def changed(self):
        """First name parts, below the base model, of what is not as it was."""
        after = self.state()
        names = [
            name.removeprefix("bert.") for name, value in self.before.items() if not torch.equal(value, after[name])
        ]
        return {name.split(".")[0] for name in names}


@pytest.fixture
def run(tiny):
    """Makes a fresh :class:`Run`."""
    return lambda rows=None: Run(tiny.model("bert"), rows)


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_only_the_groups_are_trained(run):
    one = run()
    one.train(1e-2)
    assert one.changed() == {"classifier"}
    both = run()
    both.train(1e-2, 1e-3)
    assert both.changed() == {"classifier", "encoder"}


def test_each_group_has_its_own_learning_rate(run):
    found = run()
    after = found.train(1e-2, 1e-4)
    moved = {name: float((value - found.before[name]).abs().max()) for name, value in after.items()}
    head = moved["classifier.weight"]
    encoder = max(distance for name, distance in moved.items() if "encoder" in name)
    assert 30 < head / encoder < 300


def test_values_do_not_decay(run, monkeypatch):
    made = []

    class Spy(torch.optim.AdamW):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(trainer.torch.optim, "AdamW", Spy)
    run().train(1e-2, 1e-3)
    (optimizer,) = made
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]  # decayed to nothing at the end


def test_a_run_of_one_step_trains(run):
    found = run()
    before = found.before["classifier.weight"]
    after = found.train(1e-2, epochs=1, batch_size=24)["classifier.weight"]
    assert float((after - before).abs().max()) == pytest.approx(1e-2, rel=1e-3)  # AdamW's first step is the full rate


def held_out_run(run, losses, monkeypatch, **changes):
    """Train with made-up losses on held-out rows; gives the values after each step, the result, and the losses left."""
    found, losses, values = run(), list(losses), []
    monkeypatch.setattr(trainer, "held_out_loss", lambda *_: losses.pop(0))
    result = train(
        found.model,
        found.rows,
        found.groups(1e-2),
        options(**changes),
        collate=DataCollatorWithPadding(found.tokenizer),
        held_out=found.rows[:3],
        progress=lambda *_: values.append(found.model.classifier.weight.detach().clone()),
    )
    return values, found.model.classifier.weight, result, losses


def test_the_values_with_the_lowest_loss_are_kept(run, monkeypatch):
    values, kept, result, rest = held_out_run(run, [0.5, 0.3, 0.4], monkeypatch, epochs=2.4, hold_out=0.1)
    assert (len(values), rest, result.steps) == (8, [], 6)  # after each epoch and after the last step
    assert torch.equal(kept, values[5])
    assert not torch.equal(kept, values[7])


@pytest.mark.parametrize(("patience", "steps", "kept_step"), [(1, 6, 3), (2, 15, 9), (None, 18, 18)])
def test_training_stops_when_patience_is_at_its_end(run, monkeypatch, patience, steps, kept_step):
    losses = [0.5, 0.6, 0.4, 0.7, 0.8, 0.1]
    values, kept, result, rest = held_out_run(run, losses, monkeypatch, epochs=6, hold_out=0.1, patience=patience)
    assert (len(values), result.steps) == (steps, kept_step)
    assert torch.equal(kept, values[kept_step - 1])
    assert rest == losses[len(values) // 3 :]


def test_held_out_rows_do_not_change_the_training(run):
    alone = run().train(1e-2)
    found = run()
    collate = DataCollatorWithPadding(found.tokenizer)
    train(found.model, found.rows, found.groups(1e-2), options(hold_out=0.1), collate=collate, held_out=found.rows[:5])
    assert same(alone, found.state())


def test_training_learns(run):
    found = run()
    batch = found.tokenizer(toy_rows().texts, padding=True, return_tensors="pt")
    labels = torch.tensor(toy_rows().labels)
    before = float(found.model.eval()(**batch, labels=labels).loss.detach())
    found.train(1e-2, 1e-2, epochs=15)
    after = float(found.model.eval()(**batch, labels=labels).loss.detach())
    assert after < 0.3 * before


def test_the_seed_decides_everything(run):
    first = run().train(1e-2, 1e-3)
    torch.rand(7)
    assert same(first, run().train(1e-2, 1e-3))
    assert not same(first, run().train(1e-2, 1e-3, seed=1))


def test_bf16_is_used_on_demand_and_leaves_no_trace(run):
    exact = run().train(1e-2, 1e-3, precision="fp32")
    rounded = run().train(1e-2, 1e-3, precision="bf16")
    assert not same(exact, rounded)
    assert {value.dtype for name, value in rounded.items() if name.endswith("weight")} == {torch.float32}
    assert same(exact, run().train(1e-2, 1e-3, precision="fp32"))


def test_every_step_is_reported(run):
    calls = []
    run().train(1e-2, progress=lambda *call: calls.append(call), epochs=2)
    assert calls == [(step, 6, "steps") for step in range(1, 7)]


def test_part_of_an_epoch(run):
    calls = []
    run().train(1e-2, progress=lambda *call: calls.append(call), epochs=0.5, batch_size=4)
    assert calls == [(1, 3, "steps"), (2, 3, "steps"), (3, 3, "steps")]


def test_rows_of_two_texts(run):
    found = run(toy_rows(pairs=True))
    assert any(1 in row["token_type_ids"] for row in found.rows)
    found.train(1e-2)
    assert found.changed() == {"classifier"}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(run, monkeypatch, tmp_path, capfd, fails):
    def progress(done, total, what):
        if fails:
            raise KeyboardInterrupt

    for folder in ("cwd", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    found = run()
    capfd.readouterr()
    states, environment = random_states(), dict(os.environ)
    try:
        found.train(1e-2, progress=progress)
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted is fails
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cwd", "temporary"]
    assert random_states() == states
    assert dict(os.environ) == environment


def test_rows_that_are_too_long_are_refused_before_the_first_step(run):
    found = run()
    found.rows.append(found.rows[0] | {"input_ids": [5] * 30})
    with pytest.raises(DataError, match="a row has 30 tokens, the model takes 24"):
        found.train(1e-2)
    assert found.changed() == set()
