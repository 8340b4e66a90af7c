"""A whole run: torch on a tiny model, and peers that do not run."""

import json

import pytest
import torch

from lowbit.bench import draw, worker
from lowbit.bench import speed as run_speed
from lowbit.bench.peer import Peer
from lowbit.bench.peers import choose
from lowbit.errors import BenchError, UnsupportedModelError
from tests.bench import fakes

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")  # it is a peer all the same
speed_module = __import__("sys").modules["lowbit.bench.speed"]


def peers(_):
    return [
        *choose(["torch-int8"]),
        Peer("fake-absent", ("no_such_module",), fakes.load, fakes.write),
        Peer("fake-quantize", ("torch",), fakes.load, fakes.broken),
        Peer("fake-load", ("torch",), fakes.broken),
    ]


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed_module, "choose", peers)
        for module in (speed_module, worker):
            patch.setattr(module, "Worker", fakes.ThreadWorker)
        threads = torch.get_num_threads()
        rows = run_speed(tiny.model("bert"), shapes=["1x4", "2x6"], threads=1, rounds=2, work=work)
        torch.set_num_threads(threads)
    return rows, work


def test_times_and_costs(found):
    rows, work = found
    timed = [row for row in rows if "seconds" in row]
    assert [(row["peer"], row["workload"]) for row in timed] == [
        ("torch-fp32", "1x4"),
        ("torch-int8", "1x4"),
        ("torch-fp32", "2x6"),
        ("torch-int8", "2x6"),
    ]
    for row in timed:
        assert row["rounds"] == 2
        assert row["quartiles"][0] <= row["seconds"] <= row["quartiles"][1]
        assert row["load_seconds"] > 0
        assert row["version"]
        assert row["threads"] == 1
    exact, rounded = timed[:2]
    assert exact["cosine"] == pytest.approx(1, abs=1e-9)
    assert 0.99 < rounded["cosine"] < 1 - 1e-7
    assert exact["quantize_seconds"] is None
    assert rounded["quantize_seconds"] > 0
    assert rounded["disk_bytes"] == (work / "torch-int8" / "model.pt").stat().st_size
    assert exact["resident_bytes"] is None or exact["resident_bytes"] > 0


def test_what_did_not_run_is_listed_with_its_reason(found):
    rows = {row["peer"]: row for row in found[0]}
    assert rows["fake-absent"]["absent"] == "no_such_module not installed"
    for name in ("fake-quantize", "fake-load"):
        assert rows[name]["error"] == "RuntimeError: no such kernel"
        assert "seconds" not in rows[name]


def test_rows_survive_json_and_are_drawn(found):
    rows = [json.loads(json.dumps(row)) for row in found[0]]
    assert rows == found[0]
    assert draw(rows).count("<circle") == 4 + 2  # a dot per row, and the legend


def test_a_folder_of_another_model_is_refused(found, tiny):
    with pytest.raises(BenchError, match="another model"):
        run_speed(tiny.model("roberta"), shapes=["1x4"], work=found[1])


def test_bad_calls(tiny):
    with pytest.raises(BenchError, match="rounds"):
        run_speed(tiny.model("bert"), rounds=0)
    with pytest.raises(UnsupportedModelError, match="decoder"):
        run_speed(tiny.model("t5"))
    with pytest.raises(BenchError, match="no peer"):
        run_speed(tiny.model("bert"), peers=["x"])
