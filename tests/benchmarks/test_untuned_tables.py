import pytest

from benchmarks import tables
from tests.benchmarks.test_tables import body, write

LOWBIT = {
    "model": "minilm",
    "split": "dev",
    "source": "lowbit",
    "label": "w4",
    "version": None,
    "effective_bits": 4.285,
    "weight_error": 0.09679,
    "spearman": 0.866,
    "loss": 0.001,
    "seconds": 3.21,
    "date": "2026-01-01",
}
PEER = LOWBIT | {
    "source": "quanto",
    "label": "qint4",
    "version": "0.2.7",
    "effective_bits": 4.25,
    "weight_error": 0.112,
    "loss": 0.004,
}
STRATEGY = {
    "model": "minilm",
    "strategy": "mse",
    "bits": 4,
    "granularity": "channel",
    "levels": "full",
    "effective_bits": 4.285,
    "weight_error": 0.09,
    "output_error": 0.05,
    "spearman": 0.866,
    "loss": 0.001,
    "seconds": 3.2,
}


@pytest.mark.parametrize("name", ["untuned", "peers", "strategies"])
def test_a_missing_file_gives_a_line_of_dashes(results, name):
    assert {cell for line in body(tables.TABLES[name](results)) for cell in line} == {"–"}


def test_untuned_shows_both_splits_and_no_other_library(results):
    rows = [LOWBIT, LOWBIT | {"split": "train", "loss": 0.002}, LOWBIT | {"label": "w8", "effective_bits": 8.3}, PEER]
    write(results / "untuned.jsonl", rows)
    assert body(tables.TABLES["untuned"](results)) == [
        ["minilm", "w8", "8.300", "0.0968", "–", "0.0010", "0.8660", "3.2 s"],
        ["minilm", "w4", "4.285", "0.0968", "0.0020", "0.0010", "0.8660", "3.2 s"],
    ]


def test_a_peer_stands_beside_what_train_prefers_at_no_more_bits(results):
    """Not beside w4, which has more bits, nor beside w4o0.2, which is better on dev alone."""
    narrow, better = LOWBIT | {"label": "w4o0", "effective_bits": 4.06}, LOWBIT | {"label": "w4o0.2"}
    better |= {"effective_bits": 4.2, "loss": 0.0}
    rows = [PEER, LOWBIT, narrow | {"loss": 0.003}, better]
    train = [LOWBIT | {"loss": 0.0}, narrow | {"loss": 0.001}, better | {"loss": 0.002}]
    write(results / "untuned.jsonl", rows + [row | {"split": "train"} for row in train])
    assert body(tables.TABLES["peers"](results)) == [
        ["quanto 0.2.7", "qint4", "4.250", "0.1120", "0.0040", "w4o0", "4.060", "0.0968", "0.0030", "+0.0010"]
    ]


def test_a_peer_without_match_and_an_absent_one_are_shown_too(results):
    absent = {name: PEER[name] for name in ("model", "split", "label")} | {"source": "hqq", "version": None}
    write(results / "untuned.jsonl", [PEER, absent | {"absent": True}, LOWBIT | {"split": "train"}])
    assert body(tables.TABLES["peers"](results)) == [
        ["quanto 0.2.7", "qint4", "4.250", "0.1120", "0.0040", *["–"] * 5],
        ["hqq absent", "qint4", *["–"] * 8],
    ]


def test_strategies_are_sorted_by_bits_and_granularity_and_the_newest_row_wins(results):
    rows = [
        STRATEGY | {"granularity": "group 64"},
        STRATEGY | {"loss": 0.5},
        STRATEGY,
        STRATEGY | {"granularity": "tensor"},
        STRATEGY | {"bits": 8},
    ]
    write(results / "strategies.jsonl", rows)
    found = body(tables.TABLES["strategies"](results))
    order = [("8", "channel"), ("4", "tensor"), ("4", "channel"), ("4", "group 64")]
    assert [tuple(line[:2]) for line in found] == order
    assert found[2] == ["4", "channel", "mse", "full", "4.285", "0.0900", "0.0500", "0.8660", "0.0010", "3.2 s"]
