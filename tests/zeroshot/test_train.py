"""The loop: what it stops at, keeps, and leaves alone."""

import pytest
import torch

from lowbit.errors import SchemeError, TrainingError
from lowbit.nn import FakeQuantLinear
from lowbit.zeroshot import train as module
from lowbit.zeroshot.objective import OutputObjective, Yardstick
from tests.models import file_bytes
from tests.zeroshot.runs import zeroshot

CLASSIFIER = ("bert", "BertForSequenceClassification")


def test_a_run_that_diverges_stops_with_step_and_value(tiny, tmp_path):
    with pytest.raises(
        TrainingError, match=r"step 2: the distance to the teacher has grown from 0\.\d+ to \d+.*rate \(10\)"
    ):
        zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", learning_rate=10.0, save_steps=1)
    assert not list(tmp_path.iterdir())


def test_losses_that_are_not_finite_stop_it_too(tiny, tmp_path, monkeypatch):
    original, calls = OutputObjective.loss, []

    def broken(self, student, target, batch):
        calls.append(torch.is_grad_enabled())
        return original(self, student, target, batch) * (float("nan") if calls.count(True) > 2 else 1)

    monkeypatch.setattr(OutputObjective, "loss", broken)
    with pytest.raises(TrainingError, match="step 4: the loss is nan"):
        zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", method="no-sga", steps=6, evaluate_steps=6)
    assert not list(tmp_path.iterdir())


def test_a_single_broken_step_is_skipped_and_counted(tiny, tmp_path, monkeypatch):
    original, calls = OutputObjective.loss, []

    def broken(self, student, target, batch):
        calls.append(torch.is_grad_enabled())
        second = calls[-1] and calls.count(True) == 2
        return original(self, student, target, batch) * (float("inf") if second else 1)

    monkeypatch.setattr(OutputObjective, "loss", broken)
    result = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", method="random")
    assert result.counts["skipped_descents"] == 1
    assert result.gap < result.start_gap


def made_up(monkeypatch, gaps):
    """Measurements that say what is wanted."""
    left = list(gaps)
    monkeypatch.setattr(Yardstick, "__call__", lambda self, student: left.pop(0))
    return left


def test_the_values_with_the_smallest_gap_are_kept(tiny, tmp_path, monkeypatch):
    made_up(monkeypatch, [0.5, 0.3, 0.4])
    kept = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "kept", method="random", steps=4, evaluate_steps=2)
    assert (kept.start_gap, kept.gap, kept.steps, len(kept.record)) == (0.5, 0.3, 2, 4)
    made_up(monkeypatch, [0.5, 0.6, 0.7])
    start = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "start", method="random", steps=4, evaluate_steps=2)
    assert (start.gap, start.steps) == (0.5, 0)
    made_up(monkeypatch, [0.5])
    zeroshot(tiny.model(*CLASSIFIER), tmp_path / "rtn", method="rtn")
    files = [file_bytes(tmp_path / name)["model.safetensors"] for name in ("start", "rtn", "kept")]
    assert files[0] == files[1] != files[2]


def test_it_stops_when_nothing_becomes_better(tiny, tmp_path, monkeypatch):
    left = made_up(monkeypatch, [0.5, 0.4, 0.45, 0.41, 0.3])
    found = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", method="random", steps=9, evaluate_steps=1, patience=2)
    assert (len(found.record), found.steps, left) == (3, 1, [0.3])


@pytest.mark.parametrize(("arch", "class_name"), [CLASSIFIER, ("gpt2", "GPT2LMHeadModel"), ("t5", "T5Model")])
def test_checkpointing_changes_nothing(tiny, tmp_path, arch, class_name):
    found = []
    for checkpointing in (False, True):
        output = tmp_path / str(checkpointing)
        result = zeroshot(tiny.model(arch, class_name), output, steps=2, evaluate_steps=2, checkpointing=checkpointing)
        found.append((file_bytes(output)["model.safetensors"], result.record))
    assert found[0] == found[1]


def test_checkpointing_computes_the_blocks_again(tiny, tmp_path, monkeypatch):
    calls, original = [], FakeQuantLinear.forward
    monkeypatch.setattr(FakeQuantLinear, "forward", lambda self, x: calls.append(0) or original(self, x))
    counts = []
    for checkpointing in (False, True):
        calls.clear()
        zeroshot(
            tiny.model("bert"),
            tmp_path / str(checkpointing),
            method="random",
            steps=1,
            evaluate_steps=1,
            checkpointing=checkpointing,
        )
        counts.append(len(calls))
    assert counts[1] - counts[0] == 12  # the linears of two blocks, once each


@pytest.mark.parametrize("perturb", ["weight", "latent"])
def test_what_sam_perturbs_is_a_choice(tiny, tmp_path, perturb):
    """A perturbation of the latent weights is too small to move one to another level, but for the float ones' sake."""
    result = zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", steps=1, rho=1e-4, perturb=perturb)
    assert (abs(result.record[0]["sharpness"]) > 1e-6) == (perturb == "weight")


def test_the_rates_rise_and_fall(tiny, tmp_path, monkeypatch):
    rates = []
    original = module._Game.step

    def step(self):
        row = original(self)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in self._optimizers])
        return row

    monkeypatch.setattr(module._Game, "step", step)
    zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out", steps=4, warmup=0.5, generator_rate=1e-3)
    expected = [0.5, 1.0, 2 / 3, 1 / 3]
    assert [rate[0] for rate in rates] == pytest.approx([5e-3 * part for part in expected])
    assert [rate[1] for rate in rates] == pytest.approx([1e-3 * part for part in expected])


def test_processes_must_share_evenly(tiny, tmp_path, monkeypatch):
    class World:
        num_processes, process_index, is_main_process = 3, 0, True

    monkeypatch.setattr(module, "processes", World)
    with pytest.raises(SchemeError, match="4 rows cannot be shared evenly by 3 processes"):
        zeroshot(tiny.model(*CLASSIFIER), tmp_path / "out")


def test_runs_in_half_precision(tiny, tmp_path):
    results = [
        zeroshot(tiny.model(*CLASSIFIER), tmp_path / precision, steps=4, evaluate_steps=2, precision=precision)
        for precision in ("fp32", "bf16")
    ]
    assert results[1].start_gap == results[0].start_gap  # what decides is measured in float32
    assert results[1].gap < 0.8 * results[1].start_gap
    assert results[1].record[0]["loss"] == pytest.approx(results[0].record[0]["loss"], rel=0.05)
    assert results[1].record[0]["loss"] != results[0].record[0]["loss"]
