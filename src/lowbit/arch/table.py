"""What each supported architecture calls its parts. Names are relative to the base model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lowbit.errors import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """Regular expressions over module names relative to the base model.

    ``roots``: first name parts that belong to the base model (the rest is a task head); ``blocks``: the
    linears of the transformer blocks; ``embeddings``: word embeddings; ``poolers``: kept in float and
    trained with the head.
    """

    roots: str
    blocks: str
    embeddings: str
    poolers: str = r"(?!)"

    def is_base(self, name: str) -> bool:
        """Whether a module belongs to the base model."""
        return re.fullmatch(self.roots, name.split(".", 1)[0]) is not None

    def is_pooler(self, name: str) -> bool:
        """Whether a module of the base model is a pooler."""
        return re.fullmatch(self.poolers, name) is not None


_ATTENTION = r"self\.(query|key|value)|output\.dense"
_BERT = Architecture(
    roots=r"embeddings|encoder|pooler",
    blocks=(rf"encoder\.layer\.\d+\.((attention|crossattention)\.({_ATTENTION})|(intermediate|output)\.dense)"),
    embeddings=r"embeddings\.word_embeddings",
    poolers=r"pooler\.dense",
)
_T5 = Architecture(
    roots=r"shared|encoder|decoder",
    blocks=(
        r"(encoder|decoder)\.block\.\d+\.layer\.\d+\."
        r"((SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
    ),
    embeddings=r"shared",
)
_OPT = Architecture(
    roots=r"decoder",
    blocks=r"decoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)",
    embeddings=r"decoder\.embed_tokens",
)
_GPT2 = Architecture(
    roots=r"wte|wpe|h|ln_f",
    blocks=r"h\.\d+\.((attn|crossattention)\.(c_attn|q_attn|c_proj)|mlp\.(c_fc|c_proj))",
    embeddings=r"wte",
)

ARCHITECTURES = {"bert": _BERT, "roberta": _BERT, "t5": _T5, "opt": _OPT, "gpt2": _GPT2}


def get_architecture(model_type: str) -> Architecture:
    """The table row of a model type; any other type raises :class:`UnsupportedModelError`."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]
