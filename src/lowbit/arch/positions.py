"""How many positions a model has."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

_TABLES = {"position_embeddings", "embed_positions", "wpe"}


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest row of tokens that the position tables of a model take; None where it has none.

    Read off the tables, as ``max_position_embeddings`` says it for some models only: RoBERTa's kind counts from the
    padding row on, BART and OPT set rows apart, rotary and relative positions have no end.
    """
    limits = []
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding):
            unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    return min(limits, default=None)
