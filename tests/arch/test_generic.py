"""The rule for model types without a row in the table."""

import json

import pytest
import torch
from torch import nn

import lowbit
from lowbit.arch import is_head, roles
from lowbit.arch.generic import _weights_read
from lowbit.nn import QuantModule
from tests.models import output, save_tiny, tiny_model

TABLE = "position or type embedding"
OUTSIDE = "linear outside the repeated blocks"
GPT_NEO_LAYER = """
skipped h.{i}.ln_1: norm
linear h.{i}.attn.attention.k_proj
linear h.{i}.attn.attention.v_proj
linear h.{i}.attn.attention.q_proj
linear h.{i}.attn.attention.out_proj
skipped h.{i}.ln_2: norm
linear h.{i}.mlp.c_fc
linear h.{i}.mlp.c_proj
"""
XLNET_LAYER = """
skipped layer.{i}.rel_attn: no matrix
skipped layer.{i}.rel_attn.layer_norm: norm
skipped layer.{i}.ff.layer_norm: norm
linear layer.{i}.ff.layer_1
linear layer.{i}.ff.layer_2
"""
DEBERTA_LAYER = """
skipped encoder.layer.{i}.attention.self: no matrix
skipped encoder.layer.{i}.attention.self.in_proj: DisentangledSelfAttention reads its weight directly
linear encoder.layer.{i}.attention.self.pos_proj
linear encoder.layer.{i}.attention.self.pos_q_proj
linear encoder.layer.{i}.attention.output.dense
skipped encoder.layer.{i}.attention.output.LayerNorm: norm
linear encoder.layer.{i}.intermediate.dense
linear encoder.layer.{i}.output.dense
skipped encoder.layer.{i}.output.LayerNorm: norm
"""


def twice(layer):
    return "".join(layer.format(i=i) for i in (0, 1))


GPT_NEO = f"embedding wte\nskipped wpe: {TABLE}\n{twice(GPT_NEO_LAYER)}\nskipped ln_f: norm\n"
# XLNet's attention holds three-dimensional parameters, its model a mask embedding.
XLNET = "skipped : no matrix\nembedding word_embedding\n" + twice(XLNET_LAYER)
DEBERTA = "embedding embeddings.word_embeddings\nskipped embeddings.LayerNorm: norm\n" + twice(DEBERTA_LAYER)
DEBERTA += f"skipped encoder.rel_embeddings: {TABLE}\n"
CASES = [
    ("gpt_neo", "GPTNeoModel", GPT_NEO),
    ("gpt_neo", "GPTNeoForCausalLM", GPT_NEO + "tied lm_head: shares wte"),
    ("gpt_neo", "GPTNeoForSequenceClassification", GPT_NEO + "skipped score: task head"),
    ("xlnet", "XLNetModel", XLNET),
    ("xlnet", "XLNetLMHeadModel", XLNET + "tied lm_loss: shares word_embedding"),
    (
        "xlnet",
        "XLNetForSequenceClassification",
        XLNET + "skipped sequence_summary.summary: task head\nskipped logits_proj: task head",
    ),
    ("deberta", "DebertaModel", DEBERTA),
    (
        "deberta",
        "DebertaForSequenceClassification",
        DEBERTA + "skipped pooler.dense: task head\nskipped classifier: task head",
    ),
]


@pytest.mark.parametrize(("arch", "class_name", "expected"), CASES, ids=[f"{a}-{c}" for a, c, _ in CASES])
def test_every_module_has_exactly_this_role(arch, class_name, expected):
    found = [f"{r.kind} {r.name}" + (f": {r.reason}" if r.reason else "") for r in roles(tiny_model(arch, class_name))]
    assert found == [line for line in expected.splitlines() if line]


def test_t5s_of_other_types_are_found_like_t5():
    """Also a class that is its own base model, and ``wo``, whose dtype alone is read."""
    for name in ("T5ForConditionalGeneration", "T5EncoderModel", "T5ForSequenceClassification"):
        table = {r.name: r.kind for r in roles(tiny_model("t5", name, feed_forward_proj="gated-gelu"))}
        generic = {r.name: r.kind for r in roles(tiny_model("mt5", f"M{name}"))}
        assert generic == table
    model = tiny_model("mt5", "MT5ForQuestionAnswering")
    heads = [role.path for role in roles(model) if is_head(model, role.path)]
    assert heads == ["qa_outputs"]


def test_the_table_that_the_word_embedding_is_tied_to():
    """Marian's ``get_input_embeddings()`` gives the encoder's table, which is a tied one."""
    found = {r.name: r.kind for r in roles(tiny_model("marian", "MarianMTModel")) if r.kind in ("embedding", "tied")}
    assert found.pop("shared") == "embedding"
    assert found == dict.fromkeys(["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"], "tied")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.called, self.described, self.child = (nn.Linear(2, 2) for _ in range(4))

    def forward(self, x):
        assert isinstance(self.described.weight, torch.Tensor)
        x = self.called(x.to(self.described.weight.dtype)).to(self.called.weight.device)
        return self.described(x) @ self.read.weight


class Child(Attention):
    def extra(self, x):
        return nn.functional.linear(x, self.child.weight)


def test_weights_that_code_reads():
    assert _weights_read(Attention) == {"read"}
    assert _weights_read(Child) == {"read", "child"}
    assert _weights_read(nn.MultiheadAttention) >= {"out_proj"}
    assert _weights_read(type("Made", (nn.Module,), {})) == frozenset()


class Special(nn.Linear):
    """A linear that computes something of its own."""


class Scaled(nn.Embedding):
    """An embedding that scales by a tensor."""

    embed_scale = torch.tensor(2.0)


def test_special_and_tied_modules_stay_float():
    model = tiny_model("gpt_neo", "GPTNeoForCausalLM")
    model.transformer.h[0].mlp.c_fc = Special(32, 128)
    model.transformer.wte = Scaled(64, 32)
    one = "transformer.h.1.attn.attention.{}.weight"
    model.all_tied_weights_keys |= {one.format("k_proj"): one.format("q_proj")}
    found = {role.name: (role.kind, role.reason) for role in roles(model)}
    assert found["h.0.mlp.c_fc"] == ("skipped", "Special is no plain linear")
    assert found["wte"] == ("skipped", "Scaled is no plain embedding")
    for name in ("k_proj", "q_proj"):
        assert found[f"h.1.attn.attention.{name}"] == ("skipped", "weight tied to another linear")
    assert found["h.1.attn.attention.v_proj"] == ("linear", "")


def test_a_model_that_reads_no_words(monkeypatch):
    model = tiny_model("gpt_neo", "GPTNeoModel")

    def refuse():
        raise NotImplementedError

    monkeypatch.setattr(model, "get_input_embeddings", refuse)
    assert not [role for role in roles(model) if role.kind == "embedding"]


@pytest.mark.parametrize(("arch", "class_name"), [("gpt_neo", "GPTNeoForCausalLM"), ("xlnet", "XLNetLMHeadModel")])
def test_the_rule_is_named_wherever_the_plan_is_shown(tmp_path, arch, class_name):
    source = save_tiny(tmp_path / "m", arch, class_name)
    result = lowbit.quantize(source, "w4", output=tmp_path / "q")
    note = f"model type {arch!r} has no row in the table; generic rule"
    assert result.plan.notes == (note,)
    assert json.loads((tmp_path / "q" / "plan.json").read_text())["notes"] == [note]
    assert f"- note: {note}\n" in (tmp_path / "q" / "README.md").read_text()
    model = lowbit.load(result.path)
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantModule)}
    assert quantized == {f"transformer.{entry.name}" for entry in result.plan.quantized}
    assert output(model).isfinite().all()


def test_the_table_needs_no_note():
    assert lowbit.plan(tiny_model("bert", "BertModel")).notes == ()
