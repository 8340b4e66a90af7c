import pickle

import pytest

from lowbit.bench.peer import Peer
from lowbit.bench.peers import PEERS, REFERENCE, choose
from lowbit.errors import BenchError
from tests.bench import fakes


def test_names_are_unique_and_peers_can_be_sent_to_a_process():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert pickle.loads(pickle.dumps(peer)).name == peer.name


def test_names_and_families():
    assert choose(None) == list(PEERS)
    assert [peer.name for peer in choose(["ort", "torch-int8"])] == [
        "torch-fp32",
        "torch-int8",
        "ort-fp32",
        "ort-int8",
        "ort-int4",
    ]
    assert choose([]) == [REFERENCE]
    with pytest.raises(BenchError, match="no peer 'tensorrt'"):
        choose(["tensorrt"])


def test_what_is_missing_is_said():
    assert Peer("a", ("no_such_module.part", "torch"), fakes.load).missing() == "no_such_module.part not installed"
    assert Peer("a", ("torch",), fakes.load, lacks=lambda: "no compiler").missing() == "no compiler"
    assert Peer("a", ("torch",), fakes.load).missing() is None


def test_versions():
    assert Peer("a", ("torch",), fakes.load).version
    assert Peer("a", ("no_such_module",), fakes.load).version is None
