import multiprocessing
import threading
from pathlib import Path

import pytest
import torch

from lowbit.bench.inputs import make_inputs
from lowbit.bench.peer import Peer
from lowbit.bench.worker import _serve, turn
from tests.bench import fakes


def test_a_short_pass_is_repeated_after_a_cold_one(monkeypatch):
    ticks = iter([0, 0.4, 1, 1.1, 2, 2.05, 3, 3.06, 9, 9])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert round(turn(lambda batch: None, [{}]), 6) == 0.06  # of 0.1, 0.05 and 0.06


def test_a_long_pass_is_made_once(monkeypatch):
    ticks, batches = iter([0, 3]), []
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert turn(batches.append, [{"a": torch.ones(1)}, {}]) == 3
    assert len(batches) == 2


@pytest.fixture
def served(tmp_path):
    """What a process answers, asked in a thread of this one."""
    setting, workloads = make_inputs(["2x3"], torch.get_num_threads(), vocabulary=5)
    torch.save({"setting": setting, "workloads": workloads}, tmp_path / "inputs.pt")
    pipes = []

    def start(peer):
        ours, theirs = multiprocessing.Pipe()
        pipes.append(ours)
        threading.Thread(target=_serve, args=(peer, tmp_path / "inputs.pt", theirs), daemon=True).start()

        def ask(*request):
            ours.send((request[0], request[1:]))
            assert ours.poll(20)
            return ours.recv()

        return ask

    yield start
    for pipe in pipes:
        pipe.close()


def test_from_files_to_outputs(served, tmp_path):
    ask = served(Peer("fake", ("torch",), fakes.load, fakes.write))
    failed, (seconds, cpu) = ask("quantize", Path(), tmp_path)
    assert not failed
    assert seconds >= 0
    assert cpu >= 0
    assert ask("load", tmp_path)[0] is False
    failed, (_, outputs) = ask("first", 0)
    assert outputs[0].shape == (2, 3, 4)
    failed, seconds = ask("turn", 0)
    assert 0 < seconds < 0.2
    assert ask("resident")[0] is False


def test_an_error_is_told_and_the_next_request_answered(served):
    ask = served(Peer("fake", ("torch",), fakes.broken))
    assert ask("load", Path()) == (True, "RuntimeError: no such kernel")
    assert ask("ready") == (False, None)


def test_a_package_that_cannot_be_imported_is_an_error(served):
    failed, message = served(Peer("fake", ("lowbit.no_such",), fakes.load))("ready")
    assert failed
    assert message.startswith("ModuleNotFoundError")
