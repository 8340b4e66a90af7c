"""Every source gives batches in the target's dress, from its generator of random numbers alone."""

import pytest
import torch

from lowbit.checkpoint import load_tokenizer
from lowbit.errors import DataError
from lowbit.zeroshot.methods import METHODS, make_source
from lowbit.zeroshot.sources import GaussianEmbeddings, GeneratorSource, RandomTokens
from lowbit.zeroshot.student import forward, load_teacher
from lowbit.zeroshot.texts import RealTexts, SampledTexts, _parted
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny import random_states
from tests.zeroshot.runs import TEXTS, chosen

MODELS = [("bert", "BertForSequenceClassification"), ("t5", "T5ForConditionalGeneration"), ("opt", "OPTForCausalLM")]
SOURCES = ["generator", "random", "gaussian", "sampled", "real"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def ids_of(batch):
    return batch.inputs["input_ids"]


def source_for(tiny, arch, class_name, name, **changes):
    teacher = load_teacher(tiny.model(arch, class_name))
    method = next(method for method in METHODS.values() if method.source == name)
    generator = tiny.model("opt") if name in ("generator", "sampled") else None
    options = chosen(generator=generator, **changes)
    return teacher, make_source(method, teacher, options, TEXTS if name == "real" else None)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("arch", "class_name"), MODELS)
def test_batches_follow_from_the_given_numbers_alone(tiny, arch, class_name, name):
    teacher, source = source_for(tiny, arch, class_name, name)
    before = random_states()
    first, torch_state = source.draw(6, rng()), random_states()
    torch.rand(3)
    again, other = source.draw(6, rng()), source.draw(6, rng(1))
    assert torch_state == before
    assert torch.equal(ids_of(first), ids_of(again))
    assert ids_of(first).shape != ids_of(other).shape or not torch.equal(ids_of(first), ids_of(other))
    known = first.inputs["attention_mask"].bool()
    special = {"bert": 2, "t5": 1, "opt": 1}[arch]
    assert int(known.sum(1).min()) >= special + 1
    assert int(known.sum(1).max()) <= special + 8
    assert not (known[:, 1:] & ~known[:, :-1]).any()  # padding is on the right
    assert ids_of(first)[~known].eq(teacher.tokenizer.pad_token_id).all()
    with torch.no_grad():
        assert forward(teacher.model, first).logits.isfinite().all()
    assert bool(source.players()) == (name == "generator")


@pytest.mark.parametrize("name", ["generator", "random", "gaussian", "sampled"])
@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_pairs_of_texts(tiny, arch, name):
    class_name = {"bert": "BertForSequenceClassification", "t5": "T5ForSequenceClassification"}[arch]
    _, source = source_for(tiny, arch, class_name, name, pairs=1.0)
    end = {"bert": 3, "t5": 1}[arch]
    assert ids_of(source.draw(5, rng())).eq(end).sum(1).tolist() == [2] * 5


def test_random_tokens_are_drawn_evenly():
    model, tokenizer = tiny_model("bert", "BertModel"), tiny_tokenizer("bert")
    batch = RandomTokens(model, tokenizer, chosen(lengths=(8, 8))).draw(2000, rng())
    counts = ids_of(batch)[:, 1:-1].flatten().bincount(minlength=18)
    assert counts[:4].sum() == 0
    assert (counts[4:] / counts.sum() * 14).tolist() == pytest.approx([1.0] * 14, abs=0.1)


def test_gaussian_embeddings_have_the_moments_of_the_table():
    model, tokenizer = tiny_model("bert", "BertModel"), tiny_tokenizer("bert")
    batch = GaussianEmbeddings(model, tokenizer, chosen(lengths=(8, 8))).draw(4000, rng())
    table = model.get_input_embeddings().weight.detach()
    mixture = batch.mixture
    drawn = (table[mixture.ids[mixture.present]] * mixture.weights[mixture.present][..., None]).sum(1)
    rows = table[4:18]
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), rtol=0, atol=0.01)
    expected = (rows - rows.mean(0)).t() @ (rows - rows.mean(0)) / 14
    assert float((drawn.t().cov() - expected).norm() / expected.norm()) < 0.1
    distances = torch.cdist(drawn[:100], rows).min(1).values
    assert float(distances.min()) > 0.1  # nowhere near a row


def test_a_generator_can_be_trained_and_tells_what_it_was(tiny):
    teacher = load_teacher(tiny.model("bert"))
    source = GeneratorSource(teacher.model, teacher.tokenizer, chosen())
    before = source.digest()
    batch = source.draw(3, rng())
    loss = forward(teacher.model, batch).last_hidden_state.square().sum()
    gradients = torch.autograd.grad(loss, source.players(), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    with torch.no_grad():
        source.players()[0].add_(1)
    assert source.digest() != before


def test_sampled_text_is_spelled_in_the_tokens_of_the_target(tiny):
    teacher = load_teacher(tiny.model("bert"))
    source = SampledTexts(teacher.model, teacher.tokenizer, chosen(generator=tiny.model("opt")))
    rows = ids_of(source.draw(8, rng()))
    assert rows[:, 0].eq(2).all()
    assert not rows.eq(1).any()  # no unknown word: both vocabularies have the same


def test_halves_of_a_text_share_words_where_they_are_repeats():
    assert _parted("a b c d e", [True, False]) == ("a b", "a d e")
    assert _parted("a b c d", [False, False, True]) == ("a b", "c d")
    assert _parted("a", [False]) == ("a", "a")


def test_sampled_pairs_repeat_words(tiny):
    teacher = load_teacher(tiny.model("bert"))
    options = chosen(generator=tiny.model("opt"), pairs=1.0, lengths=(8, 8))
    batch = SampledTexts(teacher.model, teacher.tokenizer, options).draw(60, rng())
    shares = []
    for ids, kinds in zip(ids_of(batch), batch.inputs["token_type_ids"], strict=True):
        first, second = ids[kinds == 0].tolist()[1:-1], ids[kinds == 1].tolist()[:-1]
        if len(first) == len(second):
            shares.append(sum(a == b for a, b in zip(first, second, strict=True)) / len(first))
    assert len(shares) > 20
    assert 0.35 < sum(shares) / len(shares) < 0.75


def test_real_texts_are_rows_as_they_are():
    model, tokenizer = tiny_model("bert", "BertModel"), tiny_tokenizer("bert")
    texts = RealTexts(model, tokenizer, chosen(), TEXTS)
    wanted = {tuple(tokenizer(text)["input_ids"]) for text in TEXTS}
    batch = texts.draw(40, rng())
    found = {
        tuple(ids[mask].tolist())
        for ids, mask in zip(ids_of(batch), batch.inputs["attention_mask"].bool(), strict=True)
    }
    assert found == wanted
    pairs = RealTexts(model, tokenizer, chosen(), [("good film", "bad book")]).draw(2, rng())
    assert ids_of(pairs)[0].tolist() == tokenizer("good film", "bad book")["input_ids"]
    assert pairs.inputs["token_type_ids"][0].tolist() == tokenizer("good film", "bad book")["token_type_ids"]


def test_texts_are_cut_to_the_greatest_length():
    model, tokenizer = tiny_model("t5", "T5ForConditionalGeneration"), tiny_tokenizer("t5")
    batch = RealTexts(model, tokenizer, chosen(lengths=(2, 3)), ["good film and a bad book"]).draw(1, rng())
    assert ids_of(batch).shape == (1, 4)
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, *ids_of(batch)[0, :-1].tolist()]]


def test_a_language_model_that_writes_blanks(tiny, monkeypatch):
    source = SampledTexts(tiny_model("opt", "OPTForCausalLM"), load_tokenizer(tiny.model("opt")), chosen())
    monkeypatch.setattr(type(source._tokenizer), "batch_decode", lambda self, rows, **_: ["  "] * len(rows))
    with pytest.raises(DataError, match="writes blanks only"):
        source.draw(3, rng())


def test_parts_of_a_batch_are_the_batch(tiny):
    teacher = load_teacher(tiny.model("bert"))
    batch = GeneratorSource(teacher.model, teacher.tokenizer, chosen()).draw(6, rng()).detach()
    parts = [batch.part(index, 3) for index in range(3)]
    for name, tensor in batch.inputs.items():
        assert torch.equal(torch.cat([part.inputs[name] for part in parts]), tensor)
    with torch.no_grad():
        whole = forward(teacher.model, batch).last_hidden_state
        halves = torch.cat([forward(teacher.model, part).last_hidden_state for part in parts])
    torch.testing.assert_close(halves, whole)
