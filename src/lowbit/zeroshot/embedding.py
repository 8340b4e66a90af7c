"""Feeding a model mixtures of rows of its own embedding table in the place of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lowbit.errors import DataError, UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Mixture:
    """For each token that is ``present`` k rows of an embedding table and what each counts.

    ``ids`` int64 and ``weights`` float [rows, tokens, k]; ``present`` bool [rows, tokens] is False where a token is
    none of the mixture's, as special tokens and padding are.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    present: torch.Tensor

    def hard_ids(self) -> torch.Tensor:
        """The id that counts most, int64 [rows, tokens]."""
        return self.ids.gather(-1, self.weights.argmax(-1, keepdim=True)).squeeze(-1)

    def detach(self) -> Mixture:
        """The same without the way back to what made it."""
        return Mixture(self.ids, self.weights.detach(), self.present)

    def to(self, device: torch.device | str) -> Mixture:
        """The same on another device."""
        return Mixture(*(getattr(self, field.name).to(device) for field in fields(self)))


def straight_through(weights: torch.Tensor) -> torch.Tensor:
    """Exactly 1 for the first weight of the last axis and 0 for the others; the gradient is that of ``weights``."""
    choice = torch.zeros_like(weights)
    choice[..., 0] = 1
    return choice + (weights - weights.detach())


def input_embedding(model: PreTrainedModel) -> nn.Module:
    """The module that embeds what a model reads; of an encoder-decoder the encoder's.

    A model that reads no words, or whose decoder shares the module itself, raises :class:`UnsupportedModelError`.
    """
    name = type(model).__name__
    encoder = model.get_encoder()
    stack = encoder if isinstance(encoder, PreTrainedModel) else model  # BERT's encoder is no model by itself
    try:
        found: nn.Module = stack.get_input_embeddings()
    except NotImplementedError as error:
        raise UnsupportedModelError(f"{name} reads no words; give a model with a word embedding") from error
    if model.config.is_encoder_decoder and model.get_decoder().get_input_embeddings() is found:
        raise UnsupportedModelError(f"{name}: encoder and decoder share one embedding module; give each one of its own")
    return found


@contextmanager
def mixed_embeddings(model: PreTrainedModel, mixture: Mixture) -> Iterator[None]:
    """Inside the block the model reads ``mixture`` where it is present, and its ``input_ids`` elsewhere.

    The output of the input embedding is replaced, so that the ids still say where padding and ends are. Rows come from
    the module itself, a float or a quantized one, with the scale that it applies; what follows it (projections,
    positions) is as ever. Gradients reach ``weights`` and the table. A mixture of one row gives exactly the output for
    that id. A forward pass on other ids than those that the mixture was made for raises :class:`DataError`; a model
    that does not call its input embedding raises :class:`UnsupportedModelError` at the end of the block.
    """
    embedding = input_embedding(model)
    calls = 0

    def replace(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return _replaced(embedding, mixture, inputs[0], output)

    hook = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
    if not calls:
        raise UnsupportedModelError(f"{type(model).__name__} does not call its input embedding; it cannot be replaced")


def _replaced(embedding: nn.Module, mixture: Mixture, ids: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    present = mixture.present
    if ids.shape != present.shape or not torch.equal(ids[present], mixture.hard_ids()[present]):
        raise DataError("the input_ids are not those of the mixture; feed a model the batch that it was made with")
    replaced = output.clone()
    replaced[present] = _mix(embedding, mixture.ids[present], mixture.weights[present]).to(output.dtype)
    return replaced


def _mix(embedding: nn.Module, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums [n, width] of embedded ids [n, k]; each distinct id is embedded once."""
    distinct, places = ids.unique(return_inverse=True)
    rows = embedding.forward(distinct)  # not a call, which would run the hook again
    return F.embedding_bag(places, rows, per_sample_weights=weights.to(rows.dtype), mode="sum")
