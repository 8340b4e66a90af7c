"""How many tokens a model takes."""

from __future__ import annotations

from transformers import PreTrainedModel


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens that a model takes at most; None where its positions are relative."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and model.config.model_type == "roberta":
        positions -= model.config.pad_token_id + 1  # its positions are counted from there
    return positions
