"""Mixtures of embedding rows in the place of tokens, for every architecture."""

import pytest
import torch

import lowbit
from lowbit.errors import DataError, UnsupportedModelError
from lowbit.nn import QuantEmbedding, TiedQuantEmbedding
from lowbit.zeroshot.embedding import Mixture, input_embedding, mixed_embeddings, straight_through
from tests.models import VOCABULARY, load, tiny_batch, tiny_model

MODELS = [
    ("bert", "BertForSequenceClassification"),
    ("bert", "BertModel"),
    ("roberta", "RobertaForMaskedLM"),
    ("albert", "AlbertForSequenceClassification"),
    ("distilbert", "DistilBertForSequenceClassification"),
    ("deberta-v2", "DebertaV2ForSequenceClassification"),
    ("deberta", "DebertaModel"),
    ("t5", "T5ForSequenceClassification"),
    ("t5", "T5ForConditionalGeneration"),
    ("t5", "T5EncoderModel"),
    ("opt", "OPTForCausalLM"),
    ("opt-projected", "OPTForSequenceClassification"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("bart", "BartForSequenceClassification"),
    ("bart", "BartForConditionalGeneration"),
    ("marian", "MarianMTModel"),
    ("llama", "LlamaForCausalLM"),
]
every_model = pytest.mark.parametrize(("arch", "class_name"), MODELS, ids=[f"{a}-{c}" for a, c in MODELS])


def batch_of(model):
    """The tiny batch, with decoder inputs where the model needs them."""
    batch = tiny_batch(model.config)
    if model.config.is_encoder_decoder and not hasattr(model, "classification_head"):
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    return batch


def mixture_on(ids, present, weights):
    """The ids first, then other rows, so many as there are weights."""
    others = [ids, *(3 + (ids + 5 * k) % (VOCABULARY - 3) for k in range(1, len(weights)))]
    return Mixture(torch.stack(others, -1), torch.tensor(weights).expand(*ids.shape, -1).clone(), present)


def inside(batch):
    """Where ordinary tokens stand in the tiny batch."""
    present = batch["attention_mask"].bool()
    present[:, 0] = False
    present[0, 8] = present[1, 5] = False
    return present


@every_model
@torch.no_grad()
def test_one_row_gives_exactly_the_output_for_its_id(arch, class_name):
    model = tiny_model(arch, class_name)
    batch = batch_of(model)
    with mixed_embeddings(model, mixture_on(batch["input_ids"], inside(batch), [1.0, 0.0, 0.0])):
        mixed = model(**batch)[0]
    assert torch.equal(mixed, model(**batch)[0])


@every_model
def test_soft_mixtures_change_the_output_and_take_gradients(arch, class_name):
    model = tiny_model(arch, class_name)
    batch = batch_of(model)
    mixture = mixture_on(batch["input_ids"], inside(batch), [0.5, 0.3, 0.2])
    mixture.weights.requires_grad_(True)
    with mixed_embeddings(model, mixture):
        mixed = model(**batch)[0]
    assert not torch.allclose(mixed, model(**batch)[0], atol=1e-4)
    mixed.square().sum().backward()
    used = mixture.weights.grad.abs().sum(-1) > 0
    assert not used[~mixture.present].any()
    assert used.any(dim=1).all()


def test_rows_are_mixed_with_the_scale_of_the_module():
    model = tiny_model("bart", "BartForConditionalGeneration")
    batch = batch_of(model)
    mixture = mixture_on(batch["input_ids"], inside(batch), [0.6, 0.4])
    embedding = input_embedding(model)
    with mixed_embeddings(model, mixture):
        mixed = embedding(batch["input_ids"])
    expected = (mixture.weights[..., None] * embedding.weight[mixture.ids] * embedding.embed_scale).sum(-2)
    assert embedding.embed_scale > 1
    torch.testing.assert_close(mixed[mixture.present], expected[mixture.present])
    assert torch.equal(mixed[~mixture.present], embedding(batch["input_ids"])[~mixture.present])


def test_the_width_is_that_of_the_table():
    model = tiny_model("albert", "AlbertModel")
    batch = batch_of(model)
    with mixed_embeddings(model, mixture_on(batch["input_ids"], inside(batch), [0.6, 0.4])):
        assert input_embedding(model)(batch["input_ids"]).shape[-1] == 24 != model.config.hidden_size


@pytest.mark.parametrize(
    ("arch", "class_name", "kind"),
    [
        ("bert", "BertModel", QuantEmbedding),
        ("t5", "T5ForConditionalGeneration", TiedQuantEmbedding),
        ("bart", "BartForConditionalGeneration", TiedQuantEmbedding),
    ],
)
@torch.no_grad()
def test_a_quantized_table_gives_its_own_rows(arch, class_name, kind, tmp_path):
    tiny_model(arch, class_name).save_pretrained(tmp_path / "float")
    lowbit.quantize(tmp_path / "float", "w4", output=tmp_path / "low")
    model = load(class_name, tmp_path / "low").eval()
    batch = batch_of(model)
    embedding = input_embedding(model)
    assert type(embedding) is kind
    with mixed_embeddings(model, mixture_on(batch["input_ids"], inside(batch), [1.0, 0.0])):
        mixed = model(**batch)[0]
    assert torch.equal(mixed, model(**batch)[0])
    mixture = mixture_on(batch["input_ids"], inside(batch), [0.6, 0.4])
    with mixed_embeddings(model, mixture):
        rows = embedding(batch["input_ids"])
    expected = (mixture.weights[..., None] * embedding.weight[mixture.ids] * embedding.embed_scale).sum(-2)
    torch.testing.assert_close(rows[mixture.present], expected[mixture.present])


def test_the_table_takes_gradients_too():
    model = tiny_model("bert", "BertModel")
    batch = batch_of(model)
    mixture = mixture_on(batch["input_ids"], inside(batch), [0.5, 0.5])
    embedding = input_embedding(model)
    with mixed_embeddings(model, mixture):
        embedding(batch["input_ids"]).sum().backward()
    seen = embedding.weight.grad.abs().sum(1) > 0
    assert seen[mixture.ids[mixture.present].unique()].all()


def test_the_straight_through_choice_is_exact_and_passes_gradients():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    values = torch.arange(7.0)
    weights = torch.softmax(logits, -1)
    hard = straight_through(weights)
    assert torch.equal(hard.detach(), torch.eye(7)[:1].expand(5, 7))
    gradient = torch.autograd.grad(hard @ values, logits, torch.ones(5))[0]
    soft = torch.autograd.grad(torch.softmax(logits, -1) @ values, logits, torch.ones(5))[0]
    torch.testing.assert_close(gradient, soft)


@torch.no_grad()
def test_other_ids_than_the_mixtures_are_refused_and_nothing_is_left_behind():
    model = tiny_model("bert", "BertModel")
    batch = batch_of(model)
    mixture = mixture_on(batch["input_ids"], inside(batch), [0.6, 0.4])
    other = batch | {"input_ids": (batch["input_ids"] + 1) % VOCABULARY}
    before = model(**other)[0]
    with pytest.raises(DataError, match="not those of the mixture"), mixed_embeddings(model, mixture):
        model(**other)
    assert torch.equal(model(**other)[0], before)


def test_embeddings_that_cannot_be_replaced_are_refused():
    shared = tiny_model("bart", "BartForConditionalGeneration")
    shared.model.set_input_embeddings(shared.model.shared)
    with pytest.raises(UnsupportedModelError, match="share one embedding module"):
        input_embedding(shared)
    wordless = tiny_model("bert", "BertModel")
    wordless.get_input_embeddings = wordless.base_model.get_input_embeddings = _no_words
    with pytest.raises(UnsupportedModelError, match="reads no words"):
        input_embedding(wordless)


def test_a_model_that_reads_past_its_embedding_is_noticed():
    model = tiny_model("t5", "T5EncoderModel")
    batch = batch_of(model)
    mixture = mixture_on(batch["input_ids"], inside(batch), [1.0])
    model.encoder.get_input_embeddings = lambda: model.shared
    with pytest.raises(UnsupportedModelError, match="does not call"), mixed_embeddings(model, mixture):
        model(**batch)


def _no_words():
    raise NotImplementedError
