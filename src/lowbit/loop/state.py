"""What a training run knows between two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

_COUNTERS = ("step", "misses", "best_step", "best_loss")


class TrainingState:
    """The trained values, AdamW's moments and the record of the evaluations on held-out rows.

    ``step`` counts the steps done, ``misses`` the evaluations since the one with the lowest loss, ``best_loss``, which
    was after ``best_step``. Order of the rows, learning rate and random numbers follow from the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._best: list[torch.Tensor] = []
        self.step = self.misses = self.best_step = 0
        self.best_loss = math.inf

    def judge(self, loss: float) -> None:
        """Take note of the loss on the held-out rows; the values with the lowest one are kept."""
        if not loss < self.best_loss:
            self.misses += 1
            return
        self.best_loss, self.best_step, self.misses = loss, self.step, 0
        self._best = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def take_best(self) -> None:
        """Go back to the values with the lowest loss, if there are any."""
        if self._best:
            for parameter, best in zip(self._parameters, self._best, strict=True):
                parameter.copy_(best)

    def counters(self) -> dict[str, Any]:
        """JSON-able part."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The other part: by index of the parameter its value, AdamW's state of it, and its best value."""
        found = {f"{index}.value": parameter.detach() for index, parameter in enumerate(self._parameters)}
        for index, state in self._optimizer.state_dict()["state"].items():
            found |= {f"{index}.{name}": tensor for name, tensor in state.items()}
        return found | {f"{index}.best": best for index, best in enumerate(self._best)}

    @torch.no_grad()
    def restore(self, counters: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the state that gave ``counters`` and ``tensors``."""
        for name in _COUNTERS:
            setattr(self, name, counters[name])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        best = {}
        for name, tensor in tensors.items():
            number, _, part = name.partition(".")
            if part == "value":
                self._parameters[int(number)].copy_(tensor)
            elif part == "best":
                best[int(number)] = tensor
            else:
                moments.setdefault(int(number), {})[part] = tensor
        self._best = [best[index] for index in sorted(best)]
        self._optimizer.load_state_dict(
            {"state": moments, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )
