"""What the student lowers and the generator raises: how far the student is from its teacher on a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.calibration import generated_inputs
from lowbit.losses import hidden_distance, output_distance
from lowbit.zeroshot.batches import GeneratedBatch
from lowbit.zeroshot.student import Teacher, forward

_EVERY = 4  # of the batches of generated texts, which are sorted by length


class Objective(Protocol):
    """A distance in two parts, so that the teacher's is computed once for several of the student's."""

    def target(self, batch: GeneratedBatch) -> Any:
        """What the teacher makes of a batch."""
        ...

    def loss(self, student: PreTrainedModel, target: Any, batch: GeneratedBatch) -> torch.Tensor:
        """The distance of a student from that, a float32 scalar."""
        ...


@dataclass(frozen=True)
class OutputObjective:
    """The distance of logits and hidden states, :func:`lowbit.losses.output_distance`."""

    teacher: PreTrainedModel
    temperature: float
    hidden: float

    def target(self, batch: GeneratedBatch) -> Any:
        """The teacher's outputs."""
        return forward(self.teacher, batch)

    def loss(self, student: PreTrainedModel, target: Any, batch: GeneratedBatch) -> torch.Tensor:
        """The distance of the student's outputs."""
        mask = batch.inputs["attention_mask"]
        output = forward(student, batch)
        return output_distance(output, target, mask, temperature=self.temperature, hidden=self.hidden)


@dataclass(frozen=True)
class _Call:
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    states: torch.Tensor


@dataclass(frozen=True)
class BlockObjective:
    """Block by block: the relative squared error of each block's output, given the teacher's input, summed.

    Source: ZeroQuant's layer-by-layer distillation (Yao et al. 2022, arXiv 2206.01861); all blocks at once, which
    changes nothing, as none sees what another makes.
    """

    teacher: PreTrainedModel
    paths: Sequence[str]

    def target(self, batch: GeneratedBatch) -> list[list[_Call]]:
        """The calls of each of the teacher's blocks."""
        with _recording([self.teacher.get_submodule(path) for path in self.paths]) as calls:
            forward(self.teacher, batch)
        return calls

    def loss(self, student: PreTrainedModel, target: list[list[_Call]], batch: GeneratedBatch) -> torch.Tensor:
        """The sum over the student's blocks, of which each sees the teacher's input."""
        mask = batch.inputs["attention_mask"]
        errors = []
        for path, calls in zip(self.paths, target, strict=True):
            block = student.get_submodule(path)
            for call in calls:
                states = _states(block(*call.arguments, **call.keywords))
                known = mask if mask.shape == states.shape[:2] else torch.ones_like(states[..., 0])
                errors.append(hidden_distance(states, call.states, known))
        return torch.stack(errors).sum()


class Yardstick:
    """How far a student is from its teacher on generated texts that no method is trained on.

    Words by Zipf's law, as in :func:`lowbit.calibration.generated_inputs`, of which a share are ``pairs`` of texts: the
    same for every method and seed.
    """

    def __init__(self, teacher: Teacher, objective: OutputObjective, pairs: float = 0.0) -> None:
        found = generated_inputs(teacher.model, teacher.tokenizer, pairs=pairs)[::_EVERY]
        self._batches = [GeneratedBatch(dict(batch)) for batch in found]
        self.objective = objective

    @torch.no_grad()
    def __call__(self, student: PreTrainedModel) -> float:
        """The mean distance over the batches."""
        total = 0.0
        for batch in self._batches:
            moved = batch.to(student.device)
            total += float(self.objective.loss(student, self.objective.target(moved), moved))
        return total / len(self._batches)


@contextmanager
def _recording(modules: Sequence[nn.Module]) -> Iterator[list[list[_Call]]]:
    """Inside the block, what each module is called with and gives."""
    calls: list[list[_Call]] = [[] for _ in modules]

    def note(found: list[_Call]) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            found.append(_Call(arguments, keywords, _states(output)))

        return hook

    hooks = [
        module.register_forward_hook(note(found), with_kwargs=True)
        for module, found in zip(modules, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _states(output: Any) -> torch.Tensor:
    """The hidden states in what a block gives."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states
