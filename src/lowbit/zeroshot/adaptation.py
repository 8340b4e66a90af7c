"""Feature adaptation: a generator's states become mixtures over the target's own embedding rows."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.errors import SchemeError, UnsupportedModelError
from lowbit.zeroshot.embedding import input_embedding, straight_through
from lowbit.zeroshot.generator import LanguageModelGenerator
from lowbit.zeroshot.pieces import ordinary_ids, shared_pieces

_RIDGE = 1.0  # of the mean squared feature; the best for pieces left out
_LEAST_SHARED = 0.01  # of the target's ordinary rows; fewer say nothing of the others
_POOL = 256  # rows that a position draws from; noise for all rows would cost as much as their scores
_SHORTEST_WAIT = 1e-30  # exponential noise may be 0
_CHUNK = 1024  # positions whose scores over the whole vocabulary are held at once


class FeatureAdaptation(nn.Module):
    """A linear map from states to the space of keys, one key per ordinary row of the target's embedding table.

    A row's score is the product of its key with the mapped state. Gumbel noise is added to the scores, so that the best
    row is drawn as the softmax of the scores says (arXiv 1611.01144, here of the 256 best scores), and the
    ``candidates`` best are mixed by a softmax at ``temperature``. With ``hard`` the mixture is its largest row alone,
    exactly a row of the table, and gradients are those of the mixture. ``shared`` counts the rows whose keys are the
    generator's own.

    ``ids`` int64 [n], ``keys`` float [n, inner], ``start`` float [inner, width of the states]: the map at first.
    """

    def __init__(
        self,
        ids: torch.Tensor,
        keys: torch.Tensor,
        start: torch.Tensor,
        *,
        shared: int = 0,
        candidates: int = 16,
        temperature: float = 1.0,
        hard: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= candidates <= ids.numel():
            raise SchemeError(f"{candidates} candidates of {ids.numel()} rows; use between 1 and that many")
        if not temperature > 0:
            raise SchemeError(f"temperature {temperature} must be positive")
        self.shared, self.candidates, self.temperature, self.hard = shared, candidates, temperature, hard
        self.map = nn.Linear(start.shape[1], start.shape[0], bias=False)
        self.map.weight = nn.Parameter(start.clone())
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("keys", keys, persistent=False)

    def forward(self, states: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """States [rows, tokens, width] to ids and weights [rows, tokens, candidates] of a mixture."""
        queries = self.map(states)
        places, noise = self._drawn(queries, rng)
        scores = (self.keys[places] @ queries[..., None]).squeeze(-1)
        weights = torch.softmax((scores + noise) / self.temperature, dim=-1)
        return self.ids[places], straight_through(weights) if self.hard else weights

    @torch.no_grad()
    def _drawn(self, queries: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Places [rows, tokens, candidates] of the keys that come first after noise, and the noise."""
        pool = min(max(_POOL, self.candidates), self.ids.numel())
        best = [(chunk @ self.keys.t()).topk(pool) for chunk in queries.flatten(0, 1).split(_CHUNK)]
        scores, places = torch.cat([top.values for top in best]), torch.cat([top.indices for top in best])
        waits = torch.empty(scores.shape, device=rng.device).exponential_(generator=rng)
        noise = -waits.clamp_min(_SHORTEST_WAIT).log().to(scores)
        chosen = (scores + noise).topk(self.candidates).indices
        shape = (*queries.shape[:2], self.candidates)
        return places.gather(-1, chosen).view(shape), noise.gather(-1, chosen).view(shape)


def aligned_adaptation(
    generator: LanguageModelGenerator,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    candidates: int = 16,
    temperature: float = 1.0,
    hard: bool = True,
) -> FeatureAdaptation:
    """The adaptation of a language model that starts as its own prediction, spelled in the target's pieces.

    The key of a piece that both vocabularies have is the row of the generator's output table, and the map is the
    identity, so that scores of shared pieces are the language model's logits; with one tokenizer for both they all are.
    Keys of other pieces are what ridge regression from the target's rows to the generator's, fitted on the shared
    ones, says of them. Vocabularies that share less than 1 % of the target's pieces raise :class:`UnsupportedModelError`.
    """
    ids = _checked_ids(target, tokenizer)
    pairs = shared_pieces(generator.tokenizer, tokenizer)
    pairs = pairs[torch.isin(pairs[:, 1], ids) & (pairs[:, 0] < generator.output_table.shape[0])]
    if len(pairs) < _LEAST_SHARED * len(ids):
        raise UnsupportedModelError(
            f"the vocabularies share {len(pairs)} of {len(ids)} pieces; give a generator for the target's language"
        )
    known = torch.searchsorted(ids, pairs[:, 1].contiguous())
    theirs = generator.output_table[pairs[:, 0].to(generator.output_table.device)]
    features = _directions(target, ids)
    keys = _regressed(features[known], theirs, features)
    keys[known] = theirs
    return FeatureAdaptation(
        ids.to(keys.device),
        keys,
        torch.eye(generator.width, device=keys.device),
        shared=len(pairs),
        candidates=candidates,
        temperature=temperature,
        hard=hard,
    )


def random_adaptation(
    width: int,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    candidates: int = 16,
    temperature: float = 1.0,
    hard: bool = True,
) -> FeatureAdaptation:
    """The adaptation of a generator without a vocabulary: a random map, and the directions of the target's rows as keys.

    Directions are centred, as embedding rows share a large mean. States as long as the root of ``width``, as a layer
    norm gives them, have scores of standard deviation 1 over the rows.
    """
    ids = _checked_ids(target, tokenizer)
    keys = _directions(target, ids)
    start = torch.randn(keys.shape[1], width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    return FeatureAdaptation(
        ids.to(keys.device), keys, start.to(keys), candidates=candidates, temperature=temperature, hard=hard
    )


def _checked_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Ordinary ids that the target's table has rows for."""
    ids = ordinary_ids(tokenizer)
    ids = ids[ids < input_embedding(target).num_embeddings]
    if not ids.numel():
        raise UnsupportedModelError("the tokenizer has no ordinary tokens; give the tokenizer of the target")
    return ids


@torch.no_grad()
def _directions(target: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the target's table less their mean, each of length 1, float32."""
    table = input_embedding(target).weight
    rows = table[ids.to(table.device)].float()
    centred = rows - rows.mean(0)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def _regressed(features: torch.Tensor, values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What ridge regression with an intercept from ``features`` to ``values`` says of ``wanted`` features."""
    x, y = features.double(), values.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.t() @ x
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    solution = torch.linalg.solve(gram, x.t() @ y)
    return ((wanted.double() - x_mean) @ solution + y_mean).float()
