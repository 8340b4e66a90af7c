"""The complete list of roles of every architecture and task class: nothing is left to a rule of thumb."""

import pytest
import torch
from transformers import BertModel

from lowbit.arch import base_prefix, find_module, relative_name, roles, tied_modules, untie
from tests.models import tiny_config, tiny_model

BERT_BASE = """
embedding embeddings.word_embeddings
skipped embeddings.position_embeddings: position or type embedding
skipped embeddings.token_type_embeddings: position or type embedding
skipped embeddings.LayerNorm: norm
{layers}
"""
BERT_LAYER = """
linear encoder.layer.{i}.attention.self.query
linear encoder.layer.{i}.attention.self.key
linear encoder.layer.{i}.attention.self.value
linear encoder.layer.{i}.attention.output.dense
skipped encoder.layer.{i}.attention.output.LayerNorm: norm
linear encoder.layer.{i}.intermediate.dense
linear encoder.layer.{i}.output.dense
skipped encoder.layer.{i}.output.LayerNorm: norm
"""
POOLER = "skipped pooler.dense: pooler"
BERT_LM_HEAD = """
skipped cls.predictions: task head
skipped cls.predictions.transform.dense: task head
skipped cls.predictions.transform.LayerNorm: task head
tied cls.predictions.decoder: shares embeddings.word_embeddings
"""
ROBERTA_LM_HEAD = """
skipped lm_head: task head
skipped lm_head.dense: task head
skipped lm_head.layer_norm: task head
tied lm_head.decoder: shares embeddings.word_embeddings
"""
T5_ATTENTION = """
linear {stack}.block.{i}.layer.{j}.{kind}.q
linear {stack}.block.{i}.layer.{j}.{kind}.k
linear {stack}.block.{i}.layer.{j}.{kind}.v
linear {stack}.block.{i}.layer.{j}.{kind}.o
"""
OPT_LAYER = """
linear decoder.layers.{i}.self_attn.k_proj
linear decoder.layers.{i}.self_attn.v_proj
linear decoder.layers.{i}.self_attn.q_proj
linear decoder.layers.{i}.self_attn.out_proj
skipped decoder.layers.{i}.self_attn_layer_norm: norm
linear decoder.layers.{i}.fc1
linear decoder.layers.{i}.fc2
skipped decoder.layers.{i}.final_layer_norm: norm
"""
GPT2_LAYER = """
skipped h.{i}.ln_1: norm
conv1d h.{i}.attn.c_attn
conv1d h.{i}.attn.c_proj
skipped h.{i}.ln_2: norm
conv1d h.{i}.mlp.c_fc
conv1d h.{i}.mlp.c_proj
"""


def bert(head):
    return BERT_BASE.format(layers=twice(BERT_LAYER)) + head


def twice(layer):
    return "".join(layer.format(i=i) for i in (0, 1))


def t5_stack(stack, wi):
    text = f"tied {stack}.embed_tokens: shares shared\n"
    for i in (0, 1):
        text += T5_ATTENTION.format(stack=stack, i=i, j=0, kind="SelfAttention")
        if i == 0:
            table = "SelfAttention.relative_attention_bias"
            text += f"skipped {stack}.block.0.layer.0.{table}: position or type embedding\n"
        text += f"skipped {stack}.block.{i}.layer.0.layer_norm: norm\n"
        last = 1
        if stack == "decoder":
            text += T5_ATTENTION.format(stack=stack, i=i, j=1, kind="EncDecAttention")
            text += f"skipped {stack}.block.{i}.layer.1.layer_norm: norm\n"
            last = 2
        for part in (*wi, "wo"):
            text += f"linear {stack}.block.{i}.layer.{last}.DenseReluDense.{part}\n"
        text += f"skipped {stack}.block.{i}.layer.{last}.layer_norm: norm\n"
    return text + f"skipped {stack}.final_layer_norm: norm\n"


def t5(head, wi=("wi",)):
    return "embedding shared\n" + t5_stack("encoder", wi) + t5_stack("decoder", wi) + head


def opt(head, outside="", norm="skipped decoder.final_layer_norm: norm\n"):
    return f"""
embedding decoder.embed_tokens
skipped decoder.embed_positions: position or type embedding
{outside}{norm}
{twice(OPT_LAYER)}
{head}
"""


def gpt2(head):
    embeddings = "embedding wte\nskipped wpe: position or type embedding\n"
    return embeddings + twice(GPT2_LAYER) + "skipped ln_f: norm\n" + head


ROBERTA_BASE = BERT_BASE.replace("skipped embeddings.position_embeddings: position or type embedding\n", "").replace(
    "LayerNorm: norm\n", "LayerNorm: norm\nskipped embeddings.position_embeddings: position or type embedding\n", 1
)
ROBERTA = ROBERTA_BASE.format(layers=twice(BERT_LAYER))
PROJECTIONS = """
skipped decoder.project_out: linear outside the transformer blocks
skipped decoder.project_in: linear outside the transformer blocks
"""

CASES = [
    ("bert", "BertModel", bert(POOLER)),
    ("bert", "BertForSequenceClassification", bert(POOLER + "\nskipped classifier: task head")),
    ("bert", "BertForMaskedLM", bert(BERT_LM_HEAD)),
    ("bert", "BertForPreTraining", bert(POOLER + BERT_LM_HEAD + "skipped cls.seq_relationship: task head")),
    ("bert", "BertForTokenClassification", bert("skipped classifier: task head")),
    ("bert", "BertForQuestionAnswering", bert("skipped qa_outputs: task head")),
    (
        "roberta",
        "RobertaForSequenceClassification",
        ROBERTA + "skipped classifier.dense: task head\nskipped classifier.out_proj: task head",
    ),
    ("roberta", "RobertaForMaskedLM", ROBERTA + ROBERTA_LM_HEAD),
    ("t5", "T5ForConditionalGeneration", t5("tied lm_head: shares shared")),
    ("t5-v1.1", "T5ForConditionalGeneration", t5("skipped lm_head: task head", wi=("wi_0", "wi_1"))),
    (
        "t5",
        "T5ForSequenceClassification",
        t5("skipped classification_head.dense: task head\nskipped classification_head.out_proj: task head"),
    ),
    ("t5", "T5EncoderModel", "embedding shared\n" + t5_stack("encoder", ("wi",))),
    ("opt", "OPTForCausalLM", opt("tied lm_head: shares decoder.embed_tokens")),
    ("opt", "OPTForSequenceClassification", opt("skipped score: task head")),
    ("opt-projected", "OPTForCausalLM", opt("tied lm_head: shares decoder.embed_tokens", PROJECTIONS, norm="")),
    ("gpt2", "GPT2LMHeadModel", gpt2("tied lm_head: shares wte")),
    ("gpt2", "GPT2ForSequenceClassification", gpt2("skipped score: task head")),
]


@pytest.mark.parametrize(("arch", "class_name", "expected"), CASES, ids=[f"{a}-{c}" for a, c, _ in CASES])
def test_every_module_has_exactly_this_role(arch, class_name, expected):
    model = tiny_model(arch, class_name)
    found = [f"{r.kind} {r.name}" + (f": {r.reason}" if r.reason else "") for r in roles(model)]
    assert found == [line for line in expected.splitlines() if line]


@pytest.mark.parametrize(("arch", "class_name", "expected"), CASES, ids=[f"{a}-{c}" for a, c, _ in CASES])
def test_paths_lead_to_the_modules(arch, class_name, expected):
    model = tiny_model(arch, class_name)
    for role in roles(model):
        assert find_module(model, role.name) == role.path
        assert relative_name(model, role.path) == role.name


def test_cross_attention_belongs_to_the_blocks():
    model = tiny_model("bert", "BertModel", is_decoder=True, add_cross_attention=True)
    kinds = {role.name: role.kind for role in roles(model)}
    assert kinds["encoder.layer.1.crossattention.self.query"] == "linear"
    assert kinds["encoder.layer.1.crossattention.output.dense"] == "linear"


def test_an_output_projection_that_the_config_unties_is_a_head():
    model = tiny_model("bert", "BertForMaskedLM", tie_word_embeddings=False)
    kinds = {role.name: (role.kind, role.reason) for role in roles(model)}
    assert kinds["cls.predictions.decoder"] == ("skipped", "task head")


def test_prefix_and_missing_modules():
    model = tiny_model("t5", "T5EncoderModel")
    assert base_prefix(model) == ""
    assert find_module(model, "decoder.block.0.layer.0.SelfAttention.q") is None
    assert base_prefix(tiny_model("t5", "T5ForSequenceClassification")) == "transformer."


def test_tied_modules_and_untie():
    model = tiny_model("t5", "T5ForConditionalGeneration")
    assert tied_modules(model) == {
        "encoder.embed_tokens": "shared",
        "decoder.embed_tokens": "shared",
        "lm_head": "shared",
    }
    untie(model, {"lm_head.weight", "shared.weight"})
    assert tied_modules(model) == {"encoder.embed_tokens": "shared", "decoder.embed_tokens": "shared"}


def test_roles_need_no_weights():
    with torch.device("meta"):
        model = BertModel(tiny_config("bert"))
    assert [role.name for role in roles(model)] == [role.name for role in roles(tiny_model("bert", "BertModel"))]
