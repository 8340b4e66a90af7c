"""Where batches come from: the generator, and the simpler sources that it is compared with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.loop import model_digest
from lowbit.zeroshot.adaptation import Mixing, aligned_adaptation, random_adaptation
from lowbit.zeroshot.batches import BatchSource, GeneratedBatch, Template
from lowbit.zeroshot.embedding import input_embedding
from lowbit.zeroshot.generator import LanguageModelGenerator, TransformerGenerator
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.pieces import ordinary_ids

_MIXED = 16  # rows that a Gaussian embedding is made of


class Source(Protocol):
    """What makes batches for a model."""

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch that follows from ``rng`` alone, with the way back to what can be trained to make hard ones."""
        ...

    def players(self) -> list[nn.Parameter]:
        """What can be trained to make hard batches; nothing in most sources."""
        ...

    def to(self, device: torch.device) -> Source:
        """Itself, on a device."""
        ...

    def digest(self) -> str:
        """SHA-256 of what batches depend on beside ``rng`` and the options of the run."""
        ...


class GeneratorSource:
    """ZSAQ's: the states of a generator, adapted to the target's embedding rows."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions) -> None:
        template = Template(model, tokenizer, lengths=options.lengths, pairs=options.pairs)
        mixing = Mixing(options.candidates)
        if options.generator is None:
            built = TransformerGenerator(seed=options.seed)
            adaptation = random_adaptation(built.width, model, tokenizer, mixing, seed=options.seed)
            self._batches = BatchSource(built, adaptation, template)
        else:
            loaded = LanguageModelGenerator.load(options.generator, tokenizer)
            adaptation = aligned_adaptation(loaded, model, tokenizer, mixing)
            self._batches = BatchSource(loaded, adaptation, template)

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of mixtures."""
        batch: GeneratedBatch = self._batches(rows, rng)
        return batch

    def players(self) -> list[nn.Parameter]:
        """Generator and adaptation."""
        return list(self._batches.parameters())

    def to(self, device: torch.device) -> GeneratorSource:
        """Itself, on a device."""
        self._batches.to(device)
        return self

    def digest(self) -> str:
        """SHA-256 of generator and adaptation."""
        return model_digest(self._batches)


class RandomTokens:
    """Tokens drawn evenly from the vocabulary, dressed as the tokenizer dresses text."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions) -> None:
        self._template = Template(model, tokenizer, lengths=options.lengths, pairs=options.pairs)
        ids = ordinary_ids(tokenizer)
        self._ids = ids[ids < model.get_input_embeddings().weight.shape[0]]

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of tokens, without mixtures."""
        layout = self._template.draw(rows, rng)
        ids = self._drawn((rows, layout.length, 1), rng)
        return GeneratedBatch(self._template.fill(layout, ids, torch.ones(ids.shape)).inputs)

    def players(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    def to(self, device: torch.device) -> RandomTokens:
        """Itself; it draws on the processor."""
        return self

    def digest(self) -> str:
        """Nothing that the model would not tell."""
        return ""

    def _drawn(self, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
        return self._ids[torch.randint(self._ids.numel(), shape, generator=rng)]


class GaussianEmbeddings(RandomTokens):
    """Embeddings from a Gaussian with the mean and the covariance of the table's rows.

    Each is a combination of 16 rows with Gaussian weights that sum to 1, so that teacher and student read the same
    point of their own tables.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions) -> None:
        super().__init__(model, tokenizer, options)
        input_embedding(model)  # raises for what cannot be replaced

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of mixtures that are nowhere near a row."""
        layout = self._template.draw(rows, rng)
        ids = self._drawn((rows, layout.length, _MIXED), rng)
        noise = torch.randn(ids.shape, generator=rng)
        weights = 1 / _MIXED + (noise - noise.mean(-1, keepdim=True)) / _MIXED**0.5
        return self._template.fill(layout, ids, weights)
