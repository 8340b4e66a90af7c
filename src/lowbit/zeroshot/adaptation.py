"""Feature adaptation: a generator's states become mixtures over the target's own embedding rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.errors import SchemeError, UnsupportedModelError
from lowbit.zeroshot.embedding import input_embedding, straight_through
from lowbit.zeroshot.generator import LanguageModelGenerator, States
from lowbit.zeroshot.pieces import ordinary_ids, shared_pieces

_RIDGE = 1.0  # of the mean squared feature; the best for pieces left out
_LEAST_SHARED = 0.01  # of the target's ordinary rows; fewer say nothing of the others
_POOL = 256  # rows that a position draws from; noise for all rows would cost as much as their scores
_SHORTEST_WAIT = 1e-30  # exponential noise may be 0
_CHUNK = 1024  # positions whose scores over the whole vocabulary are held at once


@dataclass(frozen=True)
class Mixing:
    """How many rows a mixture has, how sharp it is, and whether only its first row counts in the forward pass.

    ``strays``: the share of the texts of a language model whose tokens are rows drawn evenly instead. Fewer
    than 1 candidate, a temperature that is not positive or a share beyond 0 to 1 raises :class:`SchemeError`.
    """

    candidates: int = 16
    temperature: float = 1.0
    hard: bool = True
    strays: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strays <= 1:
            raise SchemeError(f"a share of {self.strays} strays; use 0 to 1")
        if self.candidates < 1 or not self.temperature > 0:
            raise SchemeError(f"{self.candidates} candidates at temperature {self.temperature}; both must be positive")


_MIXING = Mixing()


class FeatureAdaptation(nn.Module):
    """A linear map from states to the space of keys, one key per ordinary row of the target's embedding table.

    A row's score is the product of its key with the mapped state. Gumbel noise is added to the scores, so that the best
    row is drawn as the softmax of the scores says (arXiv 1611.01144, here of the 256 best scores), and the
    best candidates are mixed by a softmax at the temperature of ``mixing``. Where the state led to a token of
    the target's, its row takes the place of the best one; and in a share of the texts, the ``strays`` of ``mixing``,
    rows drawn evenly from the whole table do, most of which a language model alone would never use. A hard mixture is
    its best row alone, exactly a row of the table, with the gradients of the soft one.

    ``ids`` int64 [n], ``keys`` float [n, inner], ``start`` float [inner, width of the states]: the map at first.
    ``shared`` counts the rows whose keys are the generator's own.
    """

    ids: torch.Tensor
    keys: torch.Tensor
    rows: torch.Tensor

    def __init__(
        self,
        ids: torch.Tensor,
        keys: torch.Tensor,
        start: torch.Tensor,
        mixing: Mixing,
        *,
        shared: int = 0,
    ) -> None:
        super().__init__()
        if mixing.candidates > ids.numel():
            raise SchemeError(f"{mixing.candidates} candidates of {ids.numel()} rows; use that many or fewer")
        self.mixing, self.shared = mixing, shared
        self.map = nn.utils.skip_init(nn.Linear, start.shape[1], start.shape[0], bias=False)  # draws no random number
        self.map.weight = nn.Parameter(start.clone())
        self.register_buffer("ids", ids.to(keys.device), persistent=False)
        self.register_buffer("keys", keys, persistent=False)
        rows = torch.full((int(ids.max()) + 1,), -1)  # where among the ids a token is
        rows[ids] = torch.arange(ids.numel())
        self.register_buffer("rows", rows.to(keys.device), persistent=False)

    def forward(self, states: States, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """States [rows, tokens, width] to ids and weights [rows, tokens, candidates] of a mixture, the best one first.

        A hard mixture without a way back is its best row alone.
        """
        queries = self.map(states.values)
        if self.mixing.hard and not queries.requires_grad:
            places = self._best(queries.flatten(0, 1), self._given(states, rng).flatten(), rng).view(
                *queries.shape[:2], 1
            )
            return self.ids[places], torch.ones(places.shape, device=places.device)
        given = self._given(states, rng)
        places, noise = self._drawn(queries.flatten(0, 1), rng)
        places, noise = (found.view(*queries.shape[:2], -1) for found in (places, noise))
        places = _put_first(places, given)
        scores = (self.keys[places] @ queries[..., None]).squeeze(-1)
        weights = torch.softmax((scores + noise) / self.mixing.temperature, dim=-1)
        return self.ids[places], straight_through(weights) if self.mixing.hard else weights

    def _given(self, states: States, rng: torch.Generator) -> torch.Tensor:
        """The place of the key of the row that is set, int64 [rows, tokens], -1 where none is."""
        rows, tokens = states.values.shape[:2]
        if states.tokens is None:
            return torch.full((rows, tokens), -1, device=self.ids.device)
        strays = torch.rand(rows, 1, generator=rng, device=rng.device) < self.mixing.strays
        drawn = torch.randint(self.ids.numel(), (rows, tokens), generator=rng, device=rng.device)
        known = (states.tokens >= 0) & (states.tokens < self.rows.numel())
        written = torch.where(known, self.rows[states.tokens * known], -1)
        return torch.where(strays.to(self.ids.device), drawn.to(self.ids.device), written)

    def _best(self, queries: torch.Tensor, given: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """The place of the best key for each of the queries [n, inner], int64 [n]."""
        places = given.clone()
        drawn, _ = self._drawn(queries[given < 0], rng)
        places[given < 0] = drawn[:, 0]
        return places

    @torch.no_grad()
    def _drawn(self, queries: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Places [n, candidates] of the keys that come first after noise for queries [n, inner], and the noise."""
        pool = min(max(_POOL, self.mixing.candidates), self.ids.numel())
        best = [(chunk @ self.keys.t()).topk(pool) for chunk in queries.split(_CHUNK)]
        scores, places = torch.cat([top.values for top in best]), torch.cat([top.indices for top in best])
        waits = torch.empty(scores.shape, device=rng.device).exponential_(generator=rng)
        noise = -waits.clamp_min(_SHORTEST_WAIT).log().to(scores)
        chosen = (scores + noise).topk(self.mixing.candidates).indices
        return places.gather(-1, chosen), noise.gather(-1, chosen)


def _put_first(places: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Places [rows, tokens, candidates] with those that are given first, and each of them once."""
    known = given[..., None] >= 0
    elsewhere = torch.where(places == given[..., None], places[..., :1], places)  # they change places
    first = torch.where(known, given[..., None], places[..., :1])
    return torch.cat([first, torch.where(known, elsewhere, places)[..., 1:]], dim=-1)


def aligned_adaptation(
    generator: LanguageModelGenerator,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixing: Mixing = _MIXING,
) -> FeatureAdaptation:
    """The adaptation of a language model that starts as its own prediction, spelled in the target's pieces.

    The key of a piece that both vocabularies have is the row of the generator's output table, and the map is the
    identity, so that scores of shared pieces are the language model's logits; with one tokenizer for both all are.
    Keys of other pieces are what ridge regression from the target's rows to the generator's, fitted on the shared
    ones, says of them. Vocabularies that share less than 1 % of the target's pieces raise
    :class:`UnsupportedModelError`, a generator whose reader is not the target's ``tokenizer`` :class:`SchemeError`.
    """
    if generator.reader.get_vocab() != tokenizer.get_vocab():
        raise SchemeError("the generator writes in other tokens than the target's; load it with reader=tokenizer")
    ids = _checked_ids(target, tokenizer)
    pairs = shared_pieces(generator.tokenizer, tokenizer)
    pairs = pairs[torch.isin(pairs[:, 1], ids) & (pairs[:, 0] < generator.output_table.shape[0])]
    if len(pairs) < _LEAST_SHARED * len(ids):
        raise UnsupportedModelError(
            f"the vocabularies share {len(pairs)} of {len(ids)} pieces; give a generator for the target's language"
        )
    known = torch.searchsorted(ids, pairs[:, 1].contiguous())
    features = _directions(target, ids)
    theirs = generator.output_table[pairs[:, 0].to(generator.output_table.device)].to(features)
    keys = _regressed(features[known], theirs, features)
    keys[known] = theirs
    return FeatureAdaptation(ids, keys, torch.eye(generator.width).to(keys), mixing, shared=len(pairs))


def random_adaptation(
    width: int,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixing: Mixing = _MIXING,
    *,
    seed: int = 0,
) -> FeatureAdaptation:
    """The adaptation of a generator without a vocabulary: a random map, and directions of the target's rows as keys.

    Directions are centred, as embedding rows share a large mean. States as long as the root of ``width``, as a layer
    norm gives them, have scores of standard deviation 1 over the rows.
    """
    ids = _checked_ids(target, tokenizer)
    keys = _directions(target, ids)
    start = torch.randn(keys.shape[1], width, generator=torch.Generator().manual_seed(seed)) / width**0.5
    return FeatureAdaptation(ids, keys, start.to(keys), mixing)


def _checked_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Ordinary ids that the target's table has rows for."""
    ids = ordinary_ids(tokenizer)
    ids = ids[ids < _table(target).shape[0]]
    if not ids.numel():
        raise UnsupportedModelError("the tokenizer has no ordinary tokens; give the tokenizer of the target")
    return ids


def _table(target: PreTrainedModel) -> torch.Tensor:
    table: torch.Tensor = input_embedding(target).weight  # type: ignore[assignment]
    return table


@torch.no_grad()
def _directions(target: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Rows of the target's table less their mean, each of length 1, float32."""
    table = _table(target)
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
