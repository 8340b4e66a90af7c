"""Generated batches in the shape that the target's tokenizer gives to text."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.arch import position_limit
from lowbit.calibration import whole_words
from lowbit.errors import DataError, SchemeError, UnsupportedModelError
from lowbit.zeroshot.adaptation import FeatureAdaptation
from lowbit.zeroshot.embedding import Mixture
from lowbit.zeroshot.generator import StateGenerator

_ORDINARY = -1  # stands in a template for a place that the generator fills
_LENGTHS = (4, 48)  # shortest and longest row, special tokens not counted
_NO_PLACE = -1  # of special tokens and padding
_BANDS = 4  # of lengths; rows of one band have half as much padding as rows of all lengths


@dataclass(frozen=True, eq=False)
class GeneratedBatch:
    """``inputs``, as a model takes them by name, and the ``mixture`` that stands in for their ordinary tokens, if any.

    ``input_ids`` and ``attention_mask`` int64 [rows, tokens], padded on the right; ``token_type_ids`` where the
    tokenizer gives them, ``decoder_input_ids`` where the model has a decoder that needs them.
    """

    inputs: dict[str, torch.Tensor]
    mixture: Mixture | None = None

    def detach(self) -> GeneratedBatch:
        """The same without the way back to the generator."""
        return GeneratedBatch(self.inputs, None if self.mixture is None else self.mixture.detach())

    def to(self, device: torch.device | str) -> GeneratedBatch:
        """The same on another device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return GeneratedBatch(inputs, None if self.mixture is None else self.mixture.to(device))

    def part(self, index: int, parts: int) -> GeneratedBatch:
        """One of so many equal parts of its rows."""
        if parts == 1:
            return self
        size = len(self.inputs["input_ids"]) // parts
        rows = slice(index * size, (index + 1) * size)
        mixture = self.mixture
        if mixture is not None:
            mixture = Mixture(mixture.ids[rows], mixture.weights[rows], mixture.present[rows])
        return GeneratedBatch({name: tensor[rows] for name, tensor in self.inputs.items()}, mixture)


class _Token(NamedTuple):
    """An id or ``_ORDINARY``, the segment, and which state of the row the token is made of."""

    id: int
    segment: int
    place: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows whose special tokens, segments and padding are set and whose ordinary tokens are to be filled in.

    All int64 [rows, tokens]: ``ids`` with the special ones and padding; ``places``, which state of its row a token is
    made of, -1 for none; ``segments`` and ``mask``.
    """

    ids: torch.Tensor
    places: torch.Tensor
    segments: torch.Tensor
    mask: torch.Tensor

    @property
    def length(self) -> int:
        """How many states per row the longest row needs."""
        return int(self.places.max()) + 1


class Template:
    """How a tokenizer dresses one text and a pair of texts, read off what it makes of a word.

    ``lengths`` bounds the ordinary tokens of a row, cut to what the model takes; their logarithm is drawn evenly, as
    short texts are the more frequent ones, and rows of one batch are of similar lengths. ``pairs`` is the chance of a
    row to be a pair of texts, parted anywhere. The second one repeats a part of the first one's tokens, from none to
    all, as texts that are to be compared do. Lengths or chances that cannot be raise :class:`SchemeError`, a tokenizer
    without a padding token DataError.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lengths: tuple[int, int] = _LENGTHS,
        pairs: float = 0.0,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise DataError("the tokenizer has no padding token; set one, such as its end token")
        word = whole_words(tokenizer)[0]
        self._single, self._pair = _template(tokenizer, word), _template(tokenizer, word, word)
        dressing = sum(index != _ORDINARY for index, _ in (self._pair if pairs else self._single))
        room = min(position_limit(model) or tokenizer.model_max_length, tokenizer.model_max_length) - dressing
        shortest, longest = lengths[0], min(lengths[1], room)
        if not (1 + (pairs > 0)) <= shortest <= longest:
            raise SchemeError(
                f"lengths {lengths[0]} to {lengths[1]}: rows have room for {room} ordinary tokens, "
                "and a pair needs two at least; use an ascending pair within that"
            )
        if not 0 <= pairs <= 1:
            raise SchemeError(f"a share of {pairs} pairs; use 0 to 1")
        self._lengths, self._pairs, self._pad = (shortest, longest), pairs, tokenizer.pad_token_id
        self._has_segments = "token_type_ids" in tokenizer(word)
        self._decoder_start = decoder_start(model)

    def draw(self, rows: int, rng: torch.Generator) -> Layout:
        """Lengths, pairs and where these part, drawn from ``rng`` alone."""
        lengths = length_chances(rows, rng)
        pairs, parts = torch.rand(2, rows, generator=rng, device=rng.device).tolist()
        if self._decoder_start is not None:  # their classifiers ask for equally many ends in all rows of a batch
            pairs = pairs[:1] * rows
        repeats = repeated(rows, self._lengths[1], rng)
        return _laid_out([self._row(*row) for row in zip(lengths, pairs, parts, repeats, strict=True)], self._pad)

    def fill(self, layout: Layout, ids: torch.Tensor, weights: torch.Tensor) -> GeneratedBatch:
        """The batch of a layout whose ordinary tokens are mixtures [rows, length, k], in their order."""
        layout = Layout(*(tensor.to(ids.device) for tensor in vars(layout).values()))
        source = layout.places.clamp_min(0)[..., None].expand(-1, -1, ids.shape[-1])
        mixture = Mixture(ids.gather(1, source), weights.gather(1, source), layout.places >= 0)
        input_ids = torch.where(mixture.present, mixture.hard_ids(), layout.ids)
        inputs = {"input_ids": input_ids, "attention_mask": layout.mask}
        if self._has_segments:
            inputs["token_type_ids"] = layout.segments
        if self._decoder_start is not None:
            inputs["decoder_input_ids"] = read_later(input_ids, self._decoder_start)
        return GeneratedBatch(inputs, mixture)

    def _row(
        self, length_chance: float, pair_chance: float, part_chance: float, repeats: Sequence[bool]
    ) -> list[_Token]:
        """The tokens of one row; which of them are ``repeats`` of the first text counts in the second one."""
        low, high = self._lengths
        length = spread_length(low, high, length_chance)
        if pair_chance >= self._pairs:
            return _spelled(self._single, [list(range(length))])
        first = 1 + math.floor(part_chance * (length - 1))
        second = [j if j < first and repeats[j] else first + j for j in range(length - first)]
        return _spelled(self._pair, [list(range(first)), second])


class BatchSource(nn.Module):
    """Generator, adaptation and template as one: what makes batches, and what is trained to make hard ones."""

    def __init__(self, generator: StateGenerator, adaptation: FeatureAdaptation, template: Template) -> None:
        super().__init__()
        self.generator, self.adaptation, self.template = generator, adaptation, template

    def forward(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of ``rows`` rows drawn from ``rng`` alone, with the way back for gradients."""
        layout = self.template.draw(rows, rng)
        states = self.generator.states(rows, layout.length, rng, self.adaptation.map)
        return self.template.fill(layout, *self.adaptation(states, rng))


def length_chances(rows: int, rng: torch.Generator) -> list[float]:
    """A chance for the length of each row of a batch, all in one quarter of 0 to 1, which is drawn for the batch."""
    chances = torch.rand(rows + 1, generator=rng, device=rng.device).tolist()
    band = math.floor(_BANDS * chances.pop())
    return [(band + chance) / _BANDS for chance in chances]


def repeated(rows: int, length: int, rng: torch.Generator) -> list[list[bool]]:
    """Which of so many tokens are repeats: in each row a share of them that is drawn evenly from 0 to 1."""
    shares = torch.rand(rows, 1, generator=rng, device=rng.device)
    found: list[list[bool]] = (torch.rand(rows, length, generator=rng, device=rng.device) < shares).tolist()
    return found


def spread_length(low: int, high: int, chance: float) -> int:
    """A length from ``low`` to ``high``; its logarithm is even in an even ``chance`` from 0 to 1."""
    return min(high, math.floor(low * ((high + 1) / low) ** chance))


def read_later(input_ids: torch.Tensor, start: int) -> torch.Tensor:
    """Ids [rows, tokens] one place later, behind ``start``, as a decoder reads what it is to predict."""
    return torch.cat([input_ids.new_full((len(input_ids), 1), start), input_ids[:, :-1]], dim=1)


def _template(tokenizer: PreTrainedTokenizerBase, *words: str) -> list[tuple[int, int]]:
    """Ids and segments that the tokenizer gives for a word, or for the same one twice; each one ``_ORDINARY``."""
    encoded = tokenizer(*words)
    ids = encoded["input_ids"]
    segments = encoded.get("token_type_ids", [0] * len(ids))
    word = tokenizer(words[0], add_special_tokens=False)["input_ids"]
    template, place = [], 0
    while place < len(ids):
        is_word = ids[place : place + len(word)] == word
        template.append((_ORDINARY if is_word else ids[place], segments[place]))
        place += len(word) if is_word else 1
    if sum(index == _ORDINARY for index, _ in template) != len(words):
        raise DataError(f"the tokenizer makes {ids} of {words}, which tells no texts from special tokens; use another")
    return template


def _spelled(template: list[tuple[int, int]], texts: list[list[int]]) -> list[_Token]:
    """The template with the places of each text's tokens where it has one ordinary place."""
    left = iter(texts)
    return [
        _Token(index, segment, place)
        for index, segment in template
        for place in (next(left) if index == _ORDINARY else [_NO_PLACE])
    ]


def _laid_out(rows: list[list[_Token]], pad: int) -> Layout:
    width = max(map(len, rows))
    filled = [[*row, *[_Token(pad, 0, _NO_PLACE)] * (width - len(row))] for row in rows]
    ids, segments, places = torch.tensor(filled).unbind(-1)
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    return Layout(ids, places, segments, mask)


def decoder_start(model: PreTrainedModel) -> int | None:
    """What a decoder that reads the text one place later starts with; None where there is no such decoder."""
    if "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        return None
    start: int | None = model.config.decoder_start_token_id
    if start is None:
        raise UnsupportedModelError(
            "config.json has no decoder_start_token_id; add the token that its decoder starts with"
        )
    return start
