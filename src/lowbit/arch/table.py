"""What each architecture of the table calls its parts. Names are relative to the base model."""

from __future__ import annotations

import re
from dataclasses import dataclass


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

    def is_word_embedding(self, name: str) -> bool:
        """Whether an embedding of the base model holds words."""
        return re.fullmatch(self.embeddings, name) is not None

    def float_reason(self, name: str) -> str:
        """Why a linear of the base model stays in float; empty for one that is quantized."""
        return "" if re.fullmatch(self.blocks, name) else "linear outside the transformer blocks"


_BERT_WORDS = r"embeddings\.word_embeddings"
_BERT_LAYER = r"encoder\.layer\.\d+\."
_BERT_ATTENTION = r"self\.(query|key|value)|output\.dense"
_BERT_DENSE = r"(intermediate|output)\.dense"
_BERT = Architecture(
    roots=r"embeddings|encoder|pooler",
    blocks=rf"{_BERT_LAYER}((attention|crossattention)\.({_BERT_ATTENTION})|{_BERT_DENSE})",
    embeddings=_BERT_WORDS,
    poolers=r"pooler\.dense",
)
_ELECTRA = Architecture(roots=r"embeddings|embeddings_project|encoder", blocks=_BERT.blocks, embeddings=_BERT_WORDS)
_MPNET = Architecture(
    roots=_BERT.roots,
    blocks=rf"{_BERT_LAYER}(attention\.attn\.[qkvo]|{_BERT_DENSE})",
    embeddings=_BERT_WORDS,
    poolers=_BERT.poolers,
)
_DEBERTA_V2 = Architecture(
    roots=r"embeddings|encoder",
    blocks=rf"{_BERT_LAYER}(attention\.(self\.(pos_)?(query|key|value)_proj|output\.dense)|{_BERT_DENSE})",
    embeddings=_BERT_WORDS,
)
_DISTILBERT = Architecture(
    roots=r"embeddings|transformer",
    blocks=r"transformer\.layer\.\d+\.(attention\.(q|k|v|out)_lin|ffn\.lin[12])",
    embeddings=_BERT_WORDS,
)
_ALBERT = Architecture(
    roots=_BERT.roots,
    blocks=(
        r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+\."
        r"(attention\.(query|key|value|dense)|ffn|ffn_output)"
    ),
    embeddings=_BERT_WORDS,
    poolers=r"pooler",
)
_T5 = Architecture(
    roots=r"shared|encoder|decoder",
    blocks=(
        r"(encoder|decoder)\.block\.\d+\.layer\.\d+\."
        r"((SelfAttention|EncDecAttention)\.[qkvo]|DenseReluDense\.(wi|wi_0|wi_1|wo))"
    ),
    embeddings=r"shared",
)
_BART = Architecture(
    roots=_T5.roots,
    blocks=r"(encoder|decoder)\.layers\.\d+\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])",
    embeddings=r"shared|(encoder|decoder)\.embed_tokens",  # all three where a configuration unties them
)
_OPT = Architecture(
    roots=r"decoder",
    blocks=r"decoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc[12])",
    embeddings=r"decoder\.embed_tokens",
)
_GPT2 = Architecture(
    roots=r"wte|wpe|h|ln_f",
    blocks=r"h\.\d+\.((attn|crossattention)\.(c_attn|q_attn|c_proj)|mlp\.(c_fc|c_proj))",
    embeddings=r"wte",
)
_LLAMA = Architecture(
    roots=r"embed_tokens|layers|norm",
    blocks=r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    embeddings=r"embed_tokens",
)

ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _ELECTRA,
    "mpnet": _MPNET,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    "t5": _T5,
    "bart": _BART,
    "opt": _OPT,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
