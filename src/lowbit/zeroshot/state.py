"""What a zero-shot run knows between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from lowbit.loop import TrainingState
from lowbit.zeroshot.minimax import Counts


class GameState:
    """Values and moments of both players, the student's best values, the counts, and the record of the steps.

    ``start_gap`` is the distance to the teacher before the first step; None until it is measured.
    """

    def __init__(self, minimizer: torch.optim.Optimizer, maximizer: torch.optim.Optimizer | None) -> None:
        self.student = TrainingState(minimizer)
        self._players = {"student": self.student}
        if maximizer is not None:
            self._players["generator"] = TrainingState(maximizer)
        self.counts = Counts()
        self.record: list[dict[str, Any]] = []
        self.start_gap: float | None = None

    def counters(self) -> dict[str, Any]:
        """JSON-able part."""
        return {
            **{name: player.counters() for name, player in self._players.items()},
            "counts": asdict(self.counts),
            "record": self.record,
            "start_gap": self.start_gap,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The other part."""
        return {
            f"{name}.{key}": tensor
            for name, player in self._players.items()
            for key, tensor in player.tensors().items()
        }

    def restore(self, counters: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the state that gave ``counters`` and ``tensors``."""
        for name, player in self._players.items():
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            player.restore(counters[name], own)
        for name, count in counters["counts"].items():
            setattr(self.counts, name, count)
        self.record, self.start_gap = list(counters["record"]), counters["start_gap"]
