"""Peers take turns: every round each of them makes one, so that a machine that drifts drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lowbit.bench.inputs import Workload
from lowbit.bench.machine import ForeignLoad
from lowbit.bench.worker import PeerFailed

Row = dict[str, Any]

_PAUSE = 0.03  # seconds between turns, in which threads that spin for more work fall asleep
_SLOW = 20.0  # a pass of so many seconds stands for itself: the peer makes no more turns
_FOREIGN = 0.1  # processors that others may keep busy in a clean measurement


class Taker(Protocol):
    """Who takes turns: :class:`lowbit.bench.worker.Worker`, or what stands for it."""

    @property
    def pid(self) -> int:
        """Process whose time is not foreign."""
        ...

    def ask(self, method: str, *arguments: Any) -> Any:
        """As :meth:`Worker.ask`."""
        ...


def measure(
    takers: Mapping[str, Taker],
    index: int,
    workload: Workload,
    rounds: int,
    reference: str,
    tick: Callable[[str], None] = lambda _: None,
) -> dict[str, Row]:
    """Fields of a row per peer for one workload; one that fails has ``error`` instead.

    ``seconds`` of a pass are the median over rounds, ``quartiles`` their spread. ``ratio`` is how many times faster
    than ``reference``, the median of the ratios inside each round; ``cosine`` is the mean over all tokens of that
    between both hidden states. ``foreign`` is the number of processors that others kept busy during the rounds.
    """
    rows: dict[str, Row] = {}
    wanted: list[np.ndarray] | None = None
    for name in sorted(takers, key=lambda name: name != reference):  # the reference first: others need its outputs
        tick(f"{workload.name}: {name}, first")
        try:
            seconds, outputs = takers[name].ask("first", index)
        except PeerFailed as error:
            rows[name] = {"error": str(error)}
            continue
        wanted = outputs if name == reference else wanted
        cosine = None if wanted is None else mean_cosine(outputs, wanted, workload)
        rows[name] = {"first_seconds": seconds, "cosine": cosine}
    running = {name: takers[name] for name in takers if "error" not in rows[name]}
    found: dict[str, list[float]] = {name: [] for name in running}
    with ForeignLoad(taker.pid for taker in running.values()) as foreign:
        for number in range(rounds):
            for name in in_turn(list(running), number):
                if "error" in rows[name] or max(found[name], default=0) > _SLOW:
                    continue
                tick(f"{workload.name}: {name}, round {number + 1}")
                time.sleep(_PAUSE)
                try:
                    found[name].append(running[name].ask("turn", index))
                except PeerFailed as error:
                    rows[name] = {"error": str(error)}
    base = found.get(reference, [])
    for name, row in rows.items():
        if "error" not in row:
            row |= summary(found[name], base, workload.texts) | {"foreign": foreign.cores}
            row["clean"] = None if foreign.cores is None else foreign.cores <= _FOREIGN
    return {name: rows[name] for name in takers}


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of one round: each starts with another peer, so that nobody always follows the same one's heat."""
    start = number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def summary(seconds: Sequence[float], base: Sequence[float], texts: int) -> Row:
    """Median, quartiles, texts per second, and the median ratio of ``base`` to ``seconds``, round by round."""
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
    ratios = [one / other for one, other in zip(base, seconds, strict=False)]
    return {
        "rounds": len(seconds),
        "seconds": quartiles[1],
        "quartiles": [quartiles[0], quartiles[2]],
        "texts_per_second": texts / quartiles[1],
        "ratio": statistics.median(ratios) if ratios else None,
    }


def mean_cosine(outputs: Sequence[np.ndarray], wanted: Sequence[np.ndarray], workload: Workload) -> float:
    """The mean cosine between two models' hidden states of the same token, padding left out."""
    cosines = []
    for one, other, batch in zip(outputs, wanted, workload.batches, strict=True):
        mask = batch["attention_mask"].numpy().astype(bool)
        left, right = one[mask].astype(np.float64), other[mask].astype(np.float64)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines.append((left * right).sum(axis=1) / lengths)
    return float(np.concatenate(cosines).mean())
