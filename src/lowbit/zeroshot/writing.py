"""Text that a causal language model writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.arch import position_limit
from lowbit.zeroshot.pieces import ordinary_ids

_GREEDY = 3  # tokens after the first one that are the most likely ones

Scores = Callable[[Any], torch.Tensor]


class Writer:
    """Draws texts from a language model ``model``, with its head or without (LLM-QAT, arXiv 2305.17888).

    A text starts with a token drawn evenly from the vocabulary, goes on with the three most likely ones, and is drawn
    from there on; special tokens never come. ``start`` int64 [n] is what the tokenizer puts before a text, ``room`` how
    many tokens the model takes behind that, None for any number.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        # Newer versions of transformers say "cache" where older ones said "past_key_values".
        self._cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        ids = ordinary_ids(tokenizer)
        self._ids = ids[ids < model.get_input_embeddings().weight.shape[0]]
        self.start = torch.tensor(tokenizer("")["input_ids"], dtype=torch.long)
        limit = position_limit(model)
        self.room = None if limit is None else limit - len(self.start)

    @torch.no_grad()
    def write(self, rows: int, length: int, rng: torch.Generator, scores: Scores) -> torch.Tensor:
        """Ids int64 [rows, length] on the CPU; ``scores`` makes [rows, tokens, vocabulary] of the model's output.

        In the model's own dtype, also under autocast: casting weights gains nothing for the few products of one place.
        """
        with torch.autocast(self._model.device.type, enabled=False):
            return self._written(rows, length, rng, scores)

    def _written(self, rows: int, length: int, rng: torch.Generator, scores: Scores) -> torch.Tensor:
        device = self._model.device
        ids = self._ids.to(device)
        drawn = self._ids[torch.randint(self._ids.numel(), (rows, 1), generator=rng)]
        given = torch.cat([self.start.expand(rows, -1), drawn], dim=1).to(device)
        cache = {self._cache_name: DynamicCache(config=self._model.config)}
        written = [given[:, -1:]]
        seen = 0
        for place in range(1, length):
            seen += given.shape[1]
            mask = torch.ones(rows, seen, dtype=torch.long, device=device)
            output = self._model(input_ids=given, attention_mask=mask, use_cache=True, **cache)
            found = scores(output)[:, -1, ids].float()
            choice = found.argmax(-1, keepdim=True) if place <= _GREEDY else _drawn(found.softmax(-1), rng)
            given = ids[choice]
            written.append(given)
        return torch.cat(written, dim=1).cpu()


def _drawn(chances: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A column [rows, 1] by chances [rows, columns]; ``torch.multinomial`` would draw a number for every column."""
    ends = chances.double().cumsum(-1)
    points = torch.rand(len(chances), 1, generator=rng, dtype=torch.float64).to(ends) * ends[:, -1:]
    return torch.searchsorted(ends, points, right=True).clamp_max(chances.shape[1] - 1)
