import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.tuning.batches import MicroBatches, plan_batches, split_batch

ROWS = [{"input_ids": [0] * (1 + (7 * index) % 13), "labels": index} for index in range(23)]


def collate(rows):
    return {"labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.parametrize(("epochs", "steps"), [(1, 4), (2.5, 10), (0.3, 2), (0.01, 1)])
def test_every_epoch_sees_every_row_once(epochs, steps):
    batches = plan_batches(ROWS, 6, epochs, seed=0)
    assert len(batches) == steps
    for start in range(0, 4 * math.floor(epochs), 4):
        epoch = batches[start : start + 4]
        assert sorted(row for batch in epoch for row in batch) == list(range(23))
        assert [len(batch) for batch in epoch] == [6, 6, 6, 5]


def test_the_order_follows_from_the_seed_alone():
    first = plan_batches(ROWS, 6, 2, seed=0)
    torch.rand(3)
    assert plan_batches(ROWS, 6, 2, seed=0) == first
    assert plan_batches(ROWS, 6, 2, seed=1) != first
    assert plan_batches(ROWS, 6, 1, seed=0) == first[:4]
    assert first[:4] != first[4:]


def test_a_batch_holds_rows_of_similar_length():
    rows = [{"input_ids": [0] * (1 + index % 50)} for index in range(400)]
    spans = []
    for batch in plan_batches(rows, 8, 1, seed=0):
        lengths = [len(rows[row]["input_ids"]) for row in batch]
        spans.append(max(lengths) - min(lengths))
    assert sorted(spans)[len(spans) // 2] < 10


@given(st.integers(0, 40), st.integers(1, 12))
def test_parts_hold_the_batch_and_are_of_one_size(rows, parts):
    found = split_batch(range(rows), parts)
    assert [row for part in found for row in part] == list(range(rows))
    sizes = {len(part) for part in found}
    assert (len(found), max(sizes) - min(sizes) <= 1) == (parts, True)


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (3, 1), (1, 2), (2, 3), (6, 1)])
def test_processes_and_turns_share_each_batch(accumulate, processes):
    batches = plan_batches(ROWS, 6, 1, seed=0)
    shares = [
        MicroBatches(ROWS, batches, collate, len_of_row, seed=0, accumulate=accumulate, process=p, processes=processes)
        for p in range(processes)
    ]
    seeds = set()
    for step, batch in enumerate(batches):
        parts = [share[step * accumulate + turn] for turn in range(accumulate) for share in shares]
        seen = [int(label) for part in parts if part["weight"] for label in part["labels"]]
        assert seen == batch
        assert sum(part["weight"] for part in parts) == pytest.approx(1)
        total = sum(len_of_row(ROWS[row]) for row in batch)
        for part in parts:
            assert len(part["labels"]) >= 1
            assert part["weight"] in (0, sum(len_of_row(ROWS[int(row)]) for row in part["labels"]) / total)
        seeds |= {part["seed"] for part in parts}
    assert [len(share) for share in shares] == [4 * accumulate] * processes
    assert len(seeds) == 4 * accumulate * processes


def len_of_row(row):
    return len(row["input_ids"])


def test_a_later_start_gives_the_same_parts():
    batches = plan_batches(ROWS, 6, 2, seed=0)
    whole = MicroBatches(ROWS, batches, collate, len_of_row, seed=5, accumulate=2)
    rest = MicroBatches(ROWS, batches, collate, len_of_row, seed=5, accumulate=2, first_step=3)
    assert len(rest) == len(whole) - 6
    for index in range(len(rest)):
        one, other = whole[index + 6], rest[index]
        assert one["labels"].equal(other["labels"])
        assert (one["weight"], one["seed"]) == (other["weight"], other["seed"])


def test_the_seed_of_the_run_decides_that_of_the_part():
    batches = plan_batches(ROWS, 6, 1, seed=0)
    one, other = (MicroBatches(ROWS, batches, collate, len_of_row, seed=seed)[0]["seed"] for seed in (0, 1))
    assert one != other
