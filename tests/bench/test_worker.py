import os
from pathlib import Path

import pytest
import torch

from lowbit.bench.inputs import make_inputs, write_inputs
from lowbit.bench.peer import Peer
from lowbit.bench.worker import PeerFailed, Worker, quantized, turn
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
    """Starts a worker for a peer."""
    setting, workloads = make_inputs(["2x3"], torch.get_num_threads(), vocabulary=5)
    write_inputs(tmp_path / "inputs.json", setting, workloads)
    return lambda peer: fakes.ThreadWorker(peer, tmp_path / "inputs.json")


def test_from_files_to_outputs(served, tmp_path):
    worker = served(Peer("fake", ("torch",), fakes.load, fakes.write))
    seconds, cpu = worker.ask("quantize", Path(), tmp_path)
    assert seconds >= 0
    assert cpu >= 0
    assert worker.ask("load", tmp_path) >= 0
    _, outputs = worker.ask("first", 0)
    assert outputs[0].shape == (2, 3, 4)
    assert 0 < worker.ask("turn", 0) < 0.2
    worker.ask("resident")


def test_an_error_is_told_and_the_next_request_answered(served):
    worker = served(Peer("fake", ("torch",), fakes.broken))
    with pytest.raises(PeerFailed, match="RuntimeError: no such kernel"):
        worker.ask("load", Path())
    assert worker.ask("ready") is None


def test_a_package_that_cannot_be_imported_is_an_error(served):
    with pytest.raises(PeerFailed, match="ModuleNotFoundError"):
        served(Peer("fake", ("lowbit.no_such",), fakes.load)).ask("ready")


def test_what_was_quantized_is_used_again_and_leftovers_are_not(served, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.bench.worker.Worker", fakes.ThreadWorker)
    peer, folder = Peer("fake", ("torch",), fakes.load, fakes.write), tmp_path / "fake"
    folder.mkdir()
    (folder / "half").touch()  # the run before was interrupted
    first = quantized(peer, Path(), folder, tmp_path / "inputs.json", tmp_path / "log")
    assert [file.name for file in folder.iterdir()] == ["weights"]
    assert first[0] == folder
    assert first[1]["disk_bytes"] == 3
    assert quantized(peer, Path(), folder, tmp_path / "inputs.json", tmp_path / "log") == first


def test_a_process_prints_into_its_log_and_may_die(served, tmp_path, capfd):
    worker = Worker(Peer("fake", ("torch",), fakes.die, fakes.write), tmp_path / "inputs.json", tmp_path / "log")
    assert worker.pid not in (0, os.getpid())
    worker.ask("quantize", Path(), tmp_path)
    with pytest.raises(PeerFailed, match="its process ended with exit code 3"):
        worker.ask("load", tmp_path)
    worker.close()
    assert "written" in (tmp_path / "log").read_text()
    assert capfd.readouterr().out == ""
