"""Tiny random models of every supported architecture, and the helpers that compare them."""

import hashlib
import json
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.utils import logging

from lowbit.nn import QuantModule

logging.set_verbosity_error()
logging.disable_progress_bar()

VOCABULARY = 64
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_T5 |= {"decoder_start_token_id": 0}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 24,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 2,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 24,
    "scale_embedding": True,
}
_DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
_DEBERTA = _BERT | {"relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p"}
_DEBERTA_V2 = {"position_buckets": 4, "norm_rel_ebd": "layer_norm"}
_LLAMA = _BERT | {"num_key_value_heads": 2, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
_ROBERTA = _BERT | {"pad_token_id": 1, "type_vocab_size": 1}
_GPT_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
# Variants of a model type have a name of their own; all others are called by their type.
_VARIANTS = {"t5-v1.1": "t5", "opt-projected": "opt", "deberta-v2-conv": "deberta-v2", "llama-tied": "llama"}
_CONFIGS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "mpnet": _BERT | {"pad_token_id": 1},
    "distilbert": {"vocab_size": VOCABULARY, "max_position_embeddings": 24} | _DISTILBERT,
    "electra": _BERT | {"embedding_size": 24},
    "albert": _BERT | {"embedding_size": 24},
    "deberta-v2": _DEBERTA | _DEBERTA_V2 | {"share_att_key": True},
    "deberta-v2-conv": _DEBERTA | _DEBERTA_V2 | {"conv_kernel_size": 3, "position_biased_input": True},
    "t5": _T5 | {"feed_forward_proj": "relu"},
    "t5-v1.1": _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": _BART,
    "opt": _OPT | {"word_embed_proj_dim": 32},
    "opt-projected": _OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False},
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "llama-tied": _LLAMA | {"tie_word_embeddings": True},
    "mistral": _LLAMA,
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | {"tie_word_embeddings": True, "head_dim": 8},
    # Types without a row in the table.
    "deberta": _DEBERTA,
    "gpt_neo": {"vocab_size": VOCABULARY, "hidden_size": 32, "max_position_embeddings": 24} | _GPT_NEO,
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "marian": _BART | {"pad_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2, "decoder_start_token_id": 1},
    "mt5": _T5 | {"feed_forward_proj": "gated-gelu"},
}

# Special tokens in the order of their ids, then how one text and a pair of texts are dressed. GPT-2 adds nothing.
_BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_ROBERTA_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2_TOKENS = {"bos_token": "<s>", "unk_token": "<unk>", "eos_token": "</s>"}  # like the real one: no padding token
_TOKENIZERS = {
    "bert": (_BERT_TOKENS, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": (_ROBERTA_TOKENS, "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": (_T5_TOKENS, "$A </s>", "$A </s> $B </s>"),
    "opt": (_ROBERTA_TOKENS, "</s> $A", "</s> $A </s> $B"),
    "gpt2": (_GPT2_TOKENS, "$A", "$A $B"),
}
_BERT_LIKE, _ROBERTA_LIKE = _TOKENIZERS["bert"], _TOKENIZERS["roberta"]
_LLAMA_LIKE = (_GPT2_TOKENS, "<s> $A", "<s> $A $B")
_TOKENIZERS |= dict.fromkeys(("distilbert", "electra", "albert", "deberta-v2", "deberta"), _BERT_LIKE)
_TOKENIZERS |= dict.fromkeys(("xlm-roberta", "mpnet", "bart"), _ROBERTA_LIKE)
_TOKENIZERS |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA_LIKE)
_TOKENIZERS |= {"gpt_neo": _TOKENIZERS["gpt2"], "xlnet": (_BERT_TOKENS, "$A [SEP] [CLS]", "$A [SEP] $B [SEP] [CLS]")}
WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "book", "song", "the", "a", "was", "it", "very"]

# One generative or bare class per architecture, and one classifier.
LANGUAGE_MODELS = [
    ("bert", "BertForMaskedLM"),
    ("roberta", "RobertaForMaskedLM"),
    ("t5", "T5ForConditionalGeneration"),
    ("t5-v1.1", "T5ForConditionalGeneration"),
    ("opt", "OPTForCausalLM"),
    ("opt-projected", "OPTForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
]
CLASSIFIERS = [
    ("bert", "BertForSequenceClassification"),
    ("roberta", "RobertaForSequenceClassification"),
    ("t5", "T5ForSequenceClassification"),
    ("opt", "OPTForSequenceClassification"),
    ("gpt2", "GPT2ForSequenceClassification"),
]


def tiny_config(arch, **changes):
    """Configuration of a tiny model: width 32, 2 layers, 64 tokens."""
    return CONFIG_MAPPING[_VARIANTS.get(arch, arch)](**(_CONFIGS[arch] | changes))


def tiny_model(arch, class_name, seed=0, **changes):
    """A tiny model in eval mode whose every parameter, biases and norms included, is drawn from ``seed``."""
    model = getattr(transformers, class_name)(tiny_config(arch, **changes))
    if arch == "t5-v1.1" and hasattr(model, "lm_head"):
        model.lm_head.weight = nn.Parameter(torch.empty(VOCABULARY, 32))
        model.all_tied_weights_keys.pop("lm_head.weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(centre + 0.1 * noise + 0.02 * noise**3)  # heavier tails than a Gaussian
    return model.eval()


def save_tiny(folder, arch, class_name, seed=0, dtype=torch.float32, shard_size="1GB", **changes):
    """Save a tiny model as a float checkpoint and return its folder."""
    model = tiny_model(arch, class_name, seed, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return Path(folder)


def tiny_tokenizer(arch):
    """A word tokenizer over ``WORDS`` with the special tokens of an architecture; it pads on the right."""
    special, single, pair = _TOKENIZERS[arch]
    ids = {token: index for index, token in enumerate((*special.values(), *WORDS))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = Whitespace()
    tokens = [(token, ids[token]) for token in special.values()]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    fields = ["input_ids", "attention_mask"] + ["token_type_ids"] * (arch == "bert")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="right", model_input_names=fields, model_max_length=22, **special
    )


def tiny_batch(config):
    """Two rows of ids with padding on the right, ready for ``model(**batch)``."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = config.pad_token_id or 0
    ids[:, 0] = 2
    if config.is_encoder_decoder:
        ids[0, 8] = ids[1, 5] = config.eos_token_id
        if config.eos_token_id == 2:  # BART asks for the same number of end tokens in every row
            ids[:, 0] = 3
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def output(model):
    """The main output of a model on the tiny batch: logits, or hidden states of a bare model; zeros at padding."""
    batch = tiny_batch(model.config)
    if model.config.is_encoder_decoder and not hasattr(model, "classification_head"):
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    found, mask = model(**batch)[0], batch.get("attention_mask")
    if mask is None or found.shape[:2] != mask.shape or found.dim() != 3:
        return found
    return found.masked_fill(~mask.bool()[..., None], 0)


def file_bytes(folder):
    """SHA-256 of every file in a directory, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def edit_json(path, change):
    """Apply ``change`` to the mapping in a JSON file."""
    values = json.loads(Path(path).read_text())
    change(values)
    Path(path).write_text(json.dumps(values))


def load(class_name, folder, **options):
    """``from_pretrained`` of a class given by name."""
    return getattr(transformers, class_name).from_pretrained(folder, **options)


def payloads(model):
    """Every stored tensor of the quantized modules, by name relative to the base model."""
    prefix = f"{model.base_model_prefix}."
    return {
        f"{path.removeprefix(prefix)}.{name}": tensor
        for path, module in model.named_modules()
        if isinstance(module, QuantModule)
        for name, tensor in module.tensor.to_tensors().items()
    }


def same(left, right):
    """Whether two mappings hold the same tensors, bit for bit."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def stored(folder):
    """Tensors and manifest of a directory."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    return load_file(folder / "model.safetensors"), json.loads(metadata["lowbit_manifest"])
