"""What the student lowers and the generator raises: how far the student is from its teacher on a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.calibration import generated_inputs
from lowbit.losses import hidden_distance, output_distance
from lowbit.zeroshot.batches import GeneratedBatch
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.sources import RandomTokens, Source
from lowbit.zeroshot.student import Teacher, forward
from lowbit.zeroshot.texts import SampledTexts

_EVERY = 4  # of the batches of generated texts, which are sorted by length
_DRAWN, _ROWS = 4, 32  # batches of each other kind
_SEED = 718_281_828  # no seed that a run is likely to have


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
    """How far a student is from its teacher on generated texts, the same for every seed.

    128 of words by Zipf's law, as :func:`lowbit.calibration.generated_inputs` makes them, but other ones than any run
    is likely to see, 128 of tokens drawn evenly, and 128 that a language model ``generator`` writes, if there is one.
    Of each kind a share are ``pairs`` of texts. Zipf's words alone would favour a student that GPTQ has rounded by
    their like, and to a model that judges sentences all words without sense may be one.
    """

    def __init__(
        self,
        teacher: Teacher,
        objective: OutputObjective,
        pairs: float = 0.0,
        generator: str | Path | None = None,
    ) -> None:
        options = ZeroShotOptions(pairs=pairs, generator=generator)
        sources: list[Source] = [RandomTokens(teacher.model, teacher.tokenizer, options)]
        if generator is not None:
            sources.append(SampledTexts(teacher.model, teacher.tokenizer, options))
        rng = torch.Generator().manual_seed(_SEED)
        words = generated_inputs(teacher.model, teacher.tokenizer, pairs=pairs, seed=_SEED)[::_EVERY]
        self._batches = [GeneratedBatch(dict(batch)) for batch in words]
        self._batches += [source.draw(_ROWS, rng) for source in sources for _ in range(_DRAWN)]
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
