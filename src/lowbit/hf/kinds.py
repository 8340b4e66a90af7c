"""What transformers' classes predict."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

# Sequence to sequence first: BART's class is listed as a masked one, too.
_KINDS = {
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
}


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a decoder alone, which sees no token before it has predicted it."""
    if config.is_encoder_decoder or config.model_type not in _KINDS["causal"]:
        return False
    return config.model_type not in _KINDS["masked"] or bool(getattr(config, "is_decoder", False))


def language_kind(model: PreTrainedModel) -> str | None:
    """``causal``, ``masked`` or ``seq2seq``: how a language model predicts tokens; None for any other class."""
    name = type(model).__name__
    return next((kind for kind, classes in _KINDS.items() if name in classes.values()), None)
