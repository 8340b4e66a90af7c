"""The complete list of roles of the table's architectures, and of the heads that each of them has."""

import pytest

from lowbit.arch import ARCHITECTURES, find_module, relative_name, roles
from tests.models import tiny_model

TABLE = "position or type embedding"
HEAD = "task head"
BERT_TABLES = f"""
embedding embeddings.word_embeddings
skipped embeddings.position_embeddings: {TABLE}
skipped embeddings.token_type_embeddings: {TABLE}
skipped embeddings.LayerNorm: norm
"""
NO_TYPES = BERT_TABLES.replace(f"skipped embeddings.token_type_embeddings: {TABLE}\n", "")
NO_POSITIONS = NO_TYPES.replace(f"skipped embeddings.position_embeddings: {TABLE}\n", "")
XLM_ROBERTA_TABLES = f"""
embedding embeddings.word_embeddings
skipped embeddings.token_type_embeddings: {TABLE}
skipped embeddings.LayerNorm: norm
skipped embeddings.position_embeddings: {TABLE}
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
MPNET_LAYER = """
linear encoder.layer.{i}.attention.attn.q
linear encoder.layer.{i}.attention.attn.k
linear encoder.layer.{i}.attention.attn.v
linear encoder.layer.{i}.attention.attn.o
skipped encoder.layer.{i}.attention.LayerNorm: norm
linear encoder.layer.{i}.intermediate.dense
linear encoder.layer.{i}.output.dense
skipped encoder.layer.{i}.output.LayerNorm: norm
"""
DEBERTA_LAYER = (
    BERT_LAYER.replace("query\n", "query_proj\n").replace("key\n", "key_proj\n").replace("lue\n", "lue_proj\n")
)
DEBERTA_END = f"""
skipped encoder.rel_embeddings: {TABLE}
skipped encoder.LayerNorm: norm
"""
DISTILBERT_LAYER = """
linear transformer.layer.{i}.attention.q_lin
linear transformer.layer.{i}.attention.k_lin
linear transformer.layer.{i}.attention.v_lin
linear transformer.layer.{i}.attention.out_lin
skipped transformer.layer.{i}.sa_layer_norm: norm
linear transformer.layer.{i}.ffn.lin1
linear transformer.layer.{i}.ffn.lin2
skipped transformer.layer.{i}.output_layer_norm: norm
"""
ALBERT = f"""{BERT_TABLES}
skipped encoder.embedding_hidden_mapping_in: linear outside the transformer blocks
skipped encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm: norm
linear encoder.albert_layer_groups.0.albert_layers.0.attention.query
linear encoder.albert_layer_groups.0.albert_layers.0.attention.key
linear encoder.albert_layer_groups.0.albert_layers.0.attention.value
linear encoder.albert_layer_groups.0.albert_layers.0.attention.dense
skipped encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm: norm
linear encoder.albert_layer_groups.0.albert_layers.0.ffn
linear encoder.albert_layer_groups.0.albert_layers.0.ffn_output
"""
LLAMA_LAYER = """
linear layers.{i}.self_attn.q_proj
linear layers.{i}.self_attn.k_proj
linear layers.{i}.self_attn.v_proj
linear layers.{i}.self_attn.o_proj
linear layers.{i}.mlp.gate_proj
linear layers.{i}.mlp.up_proj
linear layers.{i}.mlp.down_proj
skipped layers.{i}.input_layernorm: norm
skipped layers.{i}.post_attention_layernorm: norm
"""
QWEN3_NORMS = "skipped layers.{i}.self_attn.q_norm: norm\nskipped layers.{i}.self_attn.k_norm: norm\n"
QWEN3_LAYER = LLAMA_LAYER.replace("o_proj\n", "o_proj\n" + QWEN3_NORMS)
BART_ATTENTION = """
linear {stack}.layers.{i}.{kind}.k_proj
linear {stack}.layers.{i}.{kind}.v_proj
linear {stack}.layers.{i}.{kind}.q_proj
linear {stack}.layers.{i}.{kind}.out_proj
skipped {stack}.layers.{i}.{kind}_layer_norm: norm
"""


def twice(layer):
    return "".join(layer.format(i=i) for i in (0, 1))


def bart_stack(stack, table, kinds):
    attention = "".join(BART_ATTENTION.replace("{stack}", stack).replace("{kind}", kind) for kind in kinds)
    dense = f"linear {stack}.layers.{{i}}.fc1\nlinear {stack}.layers.{{i}}.fc2\n"
    norm = f"skipped {stack}.layers.{{i}}.final_layer_norm: norm\n"
    return f"""{table}
skipped {stack}.embed_positions: {TABLE}
{twice(attention + dense + norm)}
skipped {stack}.layernorm_embedding: norm
"""


BART_DECODER = bart_stack("decoder", "embedding decoder.embed_tokens", ("self_attn", "encoder_attn"))
BART_STACKS = bart_stack("encoder", "tied encoder.embed_tokens: shares shared", ("self_attn",))
BART_STACKS += BART_DECODER.replace("embedding decoder.embed_tokens", "tied decoder.embed_tokens: shares shared")
LLAMA = f"embedding embed_tokens\n{twice(LLAMA_LAYER)}\nskipped norm: norm\n"
DEBERTA = NO_POSITIONS + twice(DEBERTA_LAYER)
OWN_POSITIONS = twice(
    DEBERTA_LAYER.replace(
        "value_proj\n",
        "value_proj\nlinear encoder.layer.{i}.attention.self.pos_key_proj\n"
        "linear encoder.layer.{i}.attention.self.pos_query_proj\n",
    )
)
CONVOLUTION = "skipped encoder.conv.conv: no matrix\nskipped encoder.conv.LayerNorm: norm\n"
# Base models by the names of tests.models, without poolers.
BASES = {
    "distilbert": NO_TYPES + twice(DISTILBERT_LAYER),
    "electra": BERT_TABLES + "skipped embeddings_project: linear outside the transformer blocks\n" + twice(BERT_LAYER),
    "albert": ALBERT,
    "deberta-v2": DEBERTA + DEBERTA_END,
    "deberta-v2-conv": NO_TYPES + OWN_POSITIONS + DEBERTA_END + CONVOLUTION,
    "mpnet": NO_TYPES + twice(MPNET_LAYER) + f"skipped encoder.relative_attention_bias: {TABLE}\n",
    "xlm-roberta": XLM_ROBERTA_TABLES + twice(BERT_LAYER),
    "llama": LLAMA,
    "llama-tied": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA.replace(twice(LLAMA_LAYER), twice(QWEN3_LAYER)),
    "bart": "embedding shared\n" + BART_STACKS,
}


def heads(*names):
    return "".join(f"skipped {name}: {HEAD}\n" for name in names)


POOLER = "skipped pooler.dense: pooler\n"
ALBERT_POOLER = "skipped pooler: pooler\n"
WORDS = "embeddings.word_embeddings"
DENSE_AND_OUT = heads("classifier.dense", "classifier.out_proj")
BERT_MLM = heads("cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")
BERT_MLM += f"tied cls.predictions.decoder: shares {WORDS}\n"
ROBERTA_LM = heads("lm_head", "lm_head.dense", "lm_head.layer_norm") + f"tied lm_head.decoder: shares {WORDS}\n"
ALBERT_MLM = heads("predictions", "predictions.LayerNorm", "predictions.dense")
ALBERT_MLM += f"tied predictions.decoder: shares {WORDS}\n"
ELECTRA_LM = heads("generator_predictions.LayerNorm", "generator_predictions.dense")
ELECTRA_LM += f"tied generator_lm_head: shares {WORDS}\n"
DISTILBERT_MLM = heads("vocab_transform", "vocab_layer_norm") + f"tied vocab_projector: shares {WORDS}\n"
TIED_LM = "tied lm_head: shares embed_tokens\n"
DECODER_HEADS = {
    "ForSequenceClassification": heads("score"),
    "ForTokenClassification": heads("score"),
    "ForQuestionAnswering": heads("qa_outputs"),
}
# What each class adds to its base model: the pooler, if any, then the head.
CLASSES = {
    "distilbert": {
        "DistilBertModel": "",
        "DistilBertForMaskedLM": DISTILBERT_MLM,
        "DistilBertForSequenceClassification": heads("pre_classifier", "classifier"),
        "DistilBertForTokenClassification": heads("classifier"),
        "DistilBertForQuestionAnswering": heads("qa_outputs"),
        "DistilBertForMultipleChoice": heads("pre_classifier", "classifier"),
    },
    "electra": {
        "ElectraModel": "",
        "ElectraForMaskedLM": ELECTRA_LM,
        "ElectraForCausalLM": ELECTRA_LM,
        "ElectraForPreTraining": heads("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
        "ElectraForSequenceClassification": DENSE_AND_OUT,
        "ElectraForTokenClassification": heads("classifier"),
        "ElectraForQuestionAnswering": heads("qa_outputs"),
        "ElectraForMultipleChoice": heads("sequence_summary.summary", "classifier"),
    },
    "albert": {
        "AlbertModel": ALBERT_POOLER,
        "AlbertForPreTraining": ALBERT_POOLER + ALBERT_MLM + heads("sop_classifier.classifier"),
        "AlbertForMaskedLM": ALBERT_MLM,
        "AlbertForSequenceClassification": ALBERT_POOLER + heads("classifier"),
        "AlbertForTokenClassification": heads("classifier"),
        "AlbertForQuestionAnswering": heads("qa_outputs"),
        "AlbertForMultipleChoice": ALBERT_POOLER + heads("classifier"),
    },
    "deberta-v2": {
        "DebertaV2Model": "",
        "DebertaV2ForMaskedLM": BERT_MLM,
        "DebertaV2ForSequenceClassification": heads("pooler.dense", "classifier"),
        "DebertaV2ForTokenClassification": heads("classifier"),
        "DebertaV2ForQuestionAnswering": heads("qa_outputs"),
        "DebertaV2ForMultipleChoice": heads("pooler.dense", "classifier"),
    },
    "deberta-v2-conv": {"DebertaV2Model": "", "DebertaV2ForMaskedLM": BERT_MLM},
    "mpnet": {
        "MPNetModel": POOLER,
        "MPNetForMaskedLM": ROBERTA_LM,
        "MPNetForSequenceClassification": DENSE_AND_OUT,
        "MPNetForTokenClassification": heads("classifier"),
        "MPNetForQuestionAnswering": heads("qa_outputs"),
        "MPNetForMultipleChoice": POOLER + heads("classifier"),
    },
    "xlm-roberta": {
        "XLMRobertaModel": POOLER,
        "XLMRobertaForMaskedLM": ROBERTA_LM,
        "XLMRobertaForCausalLM": ROBERTA_LM,
        "XLMRobertaForSequenceClassification": DENSE_AND_OUT,
        "XLMRobertaForTokenClassification": heads("classifier"),
        "XLMRobertaForQuestionAnswering": heads("qa_outputs"),
        "XLMRobertaForMultipleChoice": POOLER + heads("classifier"),
    },
    "llama": {"LlamaModel": "", "LlamaForCausalLM": heads("lm_head")},
    "llama-tied": {"LlamaForCausalLM": TIED_LM},
    "mistral": {"MistralModel": "", "MistralForCausalLM": heads("lm_head")},
    "qwen2": {"Qwen2Model": "", "Qwen2ForCausalLM": TIED_LM},
    "qwen3": {"Qwen3Model": "", "Qwen3ForCausalLM": TIED_LM},
    "bart": {
        "BartModel": "",
        "BartForConditionalGeneration": "tied lm_head: shares shared\n",
        "BartForSequenceClassification": heads("classification_head.dense", "classification_head.out_proj"),
        "BartForQuestionAnswering": heads("qa_outputs"),
    },
}
for arch, name in {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.items():
    CLASSES[arch] |= {f"{name}{task}": head for task, head in DECODER_HEADS.items()}
CASES = [(arch, name, BASES[arch] + rest) for arch, classes in CLASSES.items() for name, rest in classes.items()]
CASES.append(("bart", "BartForCausalLM", BART_DECODER + "tied lm_head: shares decoder.embed_tokens\n"))


@pytest.mark.parametrize(("arch", "class_name", "expected"), CASES, ids=[f"{a}-{c}" for a, c, _ in CASES])
def test_every_module_has_exactly_this_role(arch, class_name, expected):
    model = tiny_model(arch, class_name)
    expected = [line for line in expected.splitlines() if line]
    if class_name == "BartForConditionalGeneration":
        expected.append(f"skipped : {HEAD}")  # the model itself, which holds final_logits_bias
    found = roles(model)
    lines = [f"{r.kind} {r.name}" + (f": {r.reason}" if r.reason else "") for r in found]
    assert sorted(lines) == sorted(expected)  # some classes make their head first
    for role in found:
        assert relative_name(model, role.path) == role.name
        assert find_module(model, role.name) == role.path or role.path == ""


def test_the_table_is_tested():
    """Every model type of the table has its list, here or in test_roles."""
    assert {*ARCHITECTURES} == {arch for arch in CLASSES if arch in ARCHITECTURES} | {
        "bert",
        "roberta",
        "t5",
        "opt",
        "gpt2",
    }


def test_untied_tables_of_bart_are_all_word_embeddings():
    model = tiny_model("bart", "BartModel", tie_word_embeddings=False)
    kinds = {role.name: role.kind for role in roles(model) if role.kind in ("embedding", "tied")}
    assert kinds == dict.fromkeys(["shared", "encoder.embed_tokens", "decoder.embed_tokens"], "embedding")


def test_inner_layers_of_albert_belong_to_the_blocks():
    model = tiny_model("albert", "AlbertModel", num_hidden_groups=2, inner_group_num=2)
    linears = [role.name for role in roles(model) if role.kind == "linear"]
    assert len(linears) == 2 * 2 * 6
    assert "encoder.albert_layer_groups.1.albert_layers.1.ffn_output" in linears


def test_the_newer_head_of_deberta_reads_the_table():
    """It takes the table's weight instead of calling a projection: nothing is tied."""
    model = tiny_model("deberta-v2", "DebertaV2ForMaskedLM", legacy=False)
    found = {role.name: role.kind for role in roles(model) if role.name.startswith("lm_predictions")}
    assert set(found.values()) == {"skipped"}
