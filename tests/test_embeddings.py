"""Word embeddings in 8 and 4 bits, tied to the output projection or not; every other table stays as it was."""

import pytest
import torch
from torch import nn

import lowbit
from lowbit.nn import QuantEmbedding, TiedQuantLinear
from tests.models import load, output, save_tiny, stored, tiny_model

# Class, word embedding, output projection, and the tables of positions, types and relative distances.
TIED = [
    ("distilbert", "DistilBertForMaskedLM", "distilbert.embeddings", "vocab_projector", ["position_embeddings"]),
    ("electra", "ElectraForMaskedLM", "electra.embeddings", "generator_lm_head", ["token_type_embeddings"]),
    ("albert", "AlbertForMaskedLM", "albert.embeddings", "predictions.decoder", ["position_embeddings"]),
    ("deberta-v2", "DebertaV2ForMaskedLM", "deberta.embeddings", "cls.predictions.decoder", ["rel_embeddings"]),
    ("mpnet", "MPNetForMaskedLM", "mpnet.embeddings", "lm_head.decoder", ["relative_attention_bias"]),
    ("xlm-roberta", "XLMRobertaForMaskedLM", "roberta.embeddings", "lm_head.decoder", ["token_type_embeddings"]),
    ("bart", "BartForConditionalGeneration", "model.shared", "lm_head", ["embed_positions"]),
    ("qwen2", "Qwen2ForCausalLM", "model.embed_tokens", "lm_head", []),
    ("gpt_neo", "GPTNeoForCausalLM", "transformer.wte", "lm_head", ["wpe"]),
]
UNTIED = [
    ("llama", "LlamaForCausalLM", "model.embed_tokens", "lm_head"),
    ("mistral", "MistralForCausalLM", "model.embed_tokens", "lm_head"),
    ("bert", "BertForMaskedLM", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    ("bart", "BartForConditionalGeneration", "model.shared", "lm_head"),
]


def recipe(embeddings):
    return {"scheme": {"bits": 8, "strategy": "minmax", "outliers": None}, "embeddings": embeddings}


@pytest.mark.parametrize(("arch", "class_name", "words", "head", "others"), TIED, ids=[case[0] for case in TIED])
def test_tied(tmp_path, arch, class_name, words, head, others):
    """One payload, smaller and coarser with fewer bits, serves both; the other tables are the source's."""
    words += ".word_embeddings" if words.endswith("embeddings") else ""
    source, float_model = save_tiny(tmp_path / "m", arch, class_name), tiny_model(arch, class_name)
    errors, sizes = [], []
    for bits in (8, 4):
        model = load(class_name, lowbit.quantize(source, recipe(bits), output=tmp_path / str(bits)).path).eval()
        table, projection = model.get_submodule(words), model.get_submodule(head)
        assert type(table) is QuantEmbedding
        assert type(projection) is TiedQuantLinear
        assert projection.source is table
        assert table.scheme.bits == bits
        tensors, _ = stored(tmp_path / str(bits))
        assert f"{head}.weight" not in tensors
        sizes.append(tensors[f"{words}.weight"].numel())
        errors.append(float((output(model) - output(float_model)).norm()))
        assert table.weight.shape == float_model.get_submodule(words).weight.shape
        for name, module in float_model.named_modules():
            if isinstance(module, nn.Embedding) and not name.endswith(("word_embeddings", "shared", "_tokens", "wte")):
                assert torch.equal(model.get_submodule(name).weight, module.weight)
    assert sizes[0] == 2 * sizes[1] == float_model.get_submodule(words).weight.numel()
    assert 0 < errors[0] < errors[1]
    found = {
        name.rpartition(".")[2] for name, module in float_model.named_modules() if isinstance(module, nn.Embedding)
    }
    assert found >= set(others)


@pytest.mark.parametrize(("arch", "class_name", "words", "head"), UNTIED, ids=[case[0] for case in UNTIED])
@pytest.mark.parametrize("bits", [8, 4])
def test_untied(tmp_path, arch, class_name, words, head, bits):
    """The table is quantized, the output projection is a head and stays float, bit for bit."""
    source = save_tiny(tmp_path / "m", arch, class_name, tie_word_embeddings=False)
    result = lowbit.quantize(source, recipe(bits), output=tmp_path / "q")
    model = load(class_name, result.path)
    assert model.get_submodule(words).scheme.bits == bits
    assert type(model.get_submodule(head)) is nn.Linear
    own = tiny_model(arch, class_name, tie_word_embeddings=False).get_submodule(head).weight
    assert torch.equal(model.get_submodule(head).weight, own)
    (entry,) = (entry for entry in result.plan.entries if entry.name == head)
    assert (entry.kind, entry.reason) == ("skipped", "task head")


@pytest.mark.parametrize(("arch", "class_name"), [("albert", "AlbertForMaskedLM"), ("llama", "LlamaForCausalLM")])
def test_float(tmp_path, arch, class_name):
    source = save_tiny(tmp_path / "m", arch, class_name)
    result = lowbit.quantize(source, recipe("float"), output=tmp_path / "q")
    assert not [entry for entry in result.plan.quantized if entry.kind == "embedding"]
    table = load(class_name, result.path).get_input_embeddings()
    assert torch.equal(table.weight, tiny_model(arch, class_name).get_input_embeddings().weight)
