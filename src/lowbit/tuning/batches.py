"""Which rows each optimizer step sees, and which part of them each process works on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

Row = dict[str, Any]
Collate = Callable[[list[Row]], Any]
Items = Callable[[Row], int]


def one_item(row: Row) -> int:
    """The items of a row whose loss is one number."""
    return 1


def plan_batches(features: Sequence[Row], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """The rows of every optimizer step of a run, batches of similar length; the last one of an epoch may be smaller.

    Depends on the arguments alone, so that any process and any later run can tell what a step sees.
    """
    lengths = [len(row["input_ids"]) for row in features]
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(epochs * steps_per_epoch(features, batch_size))
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = get_length_grouped_indices(lengths, batch_size, generator=generator)
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[:steps]


def steps_per_epoch(features: Sequence[Row], batch_size: int) -> int:
    """Optimizer steps that see every row once."""
    return math.ceil(len(features) / batch_size)


def split_batch(batch: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A batch in so many parts, whose sizes differ by one at most; of a small batch some are empty."""
    bounds = [len(batch) * part // parts for part in range(parts + 1)]
    return [batch[start:end] for start, end in itertools.pairwise(bounds)]


class MicroBatches(Dataset[dict[str, Any]]):
    """What one process works on: of each batch ``accumulate`` parts in turn, collated.

    Beside the model's inputs each has ``weight``, its share of the batch's loss, and ``seed``, from which dropout is
    drawn. The seed goes by step and part: no random state outlives a step, and two processes draw what one process
    draws that accumulates two parts. An empty part gets a row of weight 0, for every process must take every step.
    """

    def __init__(
        self,
        features: Sequence[Row],
        batches: Sequence[Sequence[int]],
        collate: Collate,
        items: Items,
        *,
        seed: int,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
        first_step: int = 0,
    ) -> None:
        self._features, self._batches, self._collate, self._items = features, batches, collate, items
        self._seed, self._accumulate, self._first_step = seed, accumulate, first_step
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        return (len(self._batches) - self._first_step) * self._accumulate

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, turn = divmod(index, self._accumulate)
        step += self._first_step
        batch = self._batches[step]
        part = turn * self._processes + self._process
        rows = split_batch(batch, self._accumulate * self._processes)[part]
        inputs = self._collate([self._features[row] for row in rows or batch[:1]])
        seed = int(np.random.SeedSequence([self._seed, step, part]).generate_state(1)[0])
        return {**inputs, "weight": self._count(rows) / self._count(batch), "seed": seed}

    def _count(self, rows: Sequence[int]) -> int:
        return sum(self._items(self._features[row]) for row in rows)
