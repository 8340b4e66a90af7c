"""Generated batches look as the target's tokenizer would have made them."""

import pytest
import torch

from lowbit.errors import DataError, SchemeError
from lowbit.losses import hidden_distance
from lowbit.zeroshot import (
    BatchSource,
    Mixing,
    SamSga,
    Template,
    TransformerGenerator,
    mixed_embeddings,
    random_adaptation,
)
from lowbit.zeroshot.pieces import ordinary_ids
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny import random_states

MODELS = [
    ("bert", "BertForSequenceClassification"),
    ("roberta", "RobertaForMaskedLM"),
    ("albert", "AlbertForSequenceClassification"),
    ("distilbert", "DistilBertModel"),
    ("deberta-v2", "DebertaV2ForSequenceClassification"),
    ("t5", "T5ForSequenceClassification"),
    ("t5", "T5ForConditionalGeneration"),
    ("t5", "T5EncoderModel"),
    ("opt", "OPTForCausalLM"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("bart", "BartForSequenceClassification"),
    ("bart", "BartForConditionalGeneration"),
]
every_model = pytest.mark.parametrize(("arch", "class_name"), MODELS, ids=[f"{a}-{c}" for a, c in MODELS])
K = 3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def padded_tokenizer(arch):
    tokenizer = tiny_tokenizer(arch)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def source_for(arch, class_name, **options):
    model, tokenizer = tiny_model(arch, class_name), padded_tokenizer(arch)
    generator = TransformerGenerator(32, seed=0)
    adaptation = random_adaptation(32, model, tokenizer, Mixing(candidates=K))
    return model, tokenizer, BatchSource(generator, adaptation, Template(model, tokenizer, **options))


def rows_of(batch):
    """The ids of each row without padding."""
    inputs = batch.inputs
    return [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)]


@every_model
def test_rows_are_what_the_tokenizer_makes_of_their_text(arch, class_name):
    _, tokenizer, source = source_for(arch, class_name, lengths=(1, 9))
    batch = source(16, rng())
    texts = [
        tokenizer.decode(ids[present])
        for ids, present in zip(batch.inputs["input_ids"], batch.mixture.present, strict=True)
    ]
    expected = tokenizer(texts, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch.inputs[name], expected[name])
    assert set(batch.inputs) - {"decoder_input_ids"} == set(expected)


@every_model
def test_special_tokens_never_stand_in_ordinary_places(arch, class_name):
    _, tokenizer, source = source_for(arch, class_name, lengths=(2, 9), pairs=0.5)
    batch = source(16, rng())
    ordinary = ordinary_ids(tokenizer)
    present = batch.mixture.present
    assert torch.isin(batch.mixture.ids[present], ordinary).all()
    assert torch.equal(torch.isin(batch.inputs["input_ids"], ordinary), present)


@every_model
def test_models_take_the_batches_and_gradients_reach_all_that_is_trained(arch, class_name):
    model, tokenizer, source = source_for(arch, class_name, lengths=(2, 9), pairs=0.5)
    model.config.pad_token_id = tokenizer.pad_token_id
    for seed in range(3):
        batch = source(4, rng(seed))
        with mixed_embeddings(model, batch.mixture):
            output = model(**batch.inputs)[0]
        assert torch.equal(output, model(**batch.inputs)[0])  # a hard choice
    output.square().sum().backward()
    assert source.adaptation.map.weight.grad.abs().sum() > 0
    assert source.generator.encoder.layers[0].linear1.weight.grad.abs().sum() > 0


def test_pairs_have_separators_and_segments():
    _, tokenizer, source = source_for("bert", "BertModel", lengths=(2, 9), pairs=1.0)
    batch = source(64, rng())
    segments = batch.inputs["token_type_ids"]
    for row, kinds in zip(rows_of(batch), segments, strict=True):
        assert row.count(tokenizer.sep_token_id) == 2
        assert row[0] == tokenizer.cls_token_id
        first = row.index(tokenizer.sep_token_id)
        assert 1 < first < len(row) - 2  # none of the texts is empty
        assert kinds.tolist() == [0] * (first + 1) + [1] * (len(row) - first - 1) + [0] * (len(kinds) - len(row))


def test_second_texts_repeat_the_first_ones_in_part():
    """In their places, from none of the tokens to all of them; the others are new."""
    _, _, source = source_for("bert", "BertModel", lengths=(8, 12), pairs=1.0)
    layout = source.template.draw(400, rng())
    shares = []
    for places, segments in zip(layout.places, layout.segments, strict=True):
        first, second = (places[(places >= 0) & (segments == text)].tolist() for text in (0, 1))
        assert first == list(range(len(first)))
        repeats = [place < len(first) for place in second]
        expected = [j if repeat else len(first) + j for j, repeat in enumerate(repeats)]
        assert second == expected
        room = min(len(first), len(second))
        assert not any(repeats[room:])
        if room >= 3:
            shares.append(sum(repeats) / room)
    assert min(shares) == 0
    assert max(shares) == 1
    assert abs(sum(shares) / len(shares) - 0.5) < 0.07
    batch = source(8, rng())
    for ids, places in zip(batch.inputs["input_ids"], source.template.draw(8, rng()).places, strict=True):
        assert all(len(ids[places == place].unique()) == 1 for place in places[places >= 0].unique())


def test_the_share_of_pairs():
    _, tokenizer, source = source_for("roberta", "RobertaModel", lengths=(2, 9), pairs=0.3)
    rows = rows_of(source(1000, rng()))
    share = sum(row.count(tokenizer.eos_token_id) == 3 for row in rows) / len(rows)
    assert abs(share - 0.3) < 0.05


def drawn_lengths(source, batches):
    noise = rng()
    return [source.template.draw(16, noise).places.max(1).values + 1 for _ in range(batches)]


def test_short_rows_are_more_frequent():
    _, _, source = source_for("bert", "BertModel", lengths=(2, 16))
    lengths = torch.cat(drawn_lengths(source, 2000))
    assert lengths.min() == 2
    assert lengths.max() == 16
    shares = lengths.bincount(minlength=17)[2:] / len(lengths)
    logarithms = torch.log(torch.arange(2, 18).float())
    torch.testing.assert_close(shares, logarithms.diff() / torch.log(torch.tensor(17 / 2)), atol=0.025, rtol=0)


def test_rows_of_a_batch_are_of_similar_lengths():
    """All of them in one quarter of the logarithms from 1 to 17, and every quarter comes."""
    _, _, source = source_for("bert", "BertModel", lengths=(1, 16))
    quarters = {1: range(1, 3), 2: range(2, 5), 4: range(4, 9), 8: range(8, 17)}
    found = [(int(lengths.min()), int(lengths.max())) for lengths in drawn_lengths(source, 64)]
    assert {low for low, _ in found} >= set(quarters)
    assert all(any(low in quarter and high in quarter for quarter in quarters.values()) for low, high in found)


def test_rows_are_as_long_as_the_model_takes():
    _, _, source = source_for("bert", "BertModel", lengths=(2, 500), pairs=0.5)
    drawn = [source.template.draw(100, noise) for noise in [rng()] for _ in range(50)]
    assert max(layout.ids.shape[1] for layout in drawn) <= 22  # the tokenizer's limit, below the model's 24
    assert max(layout.length for layout in drawn) == 19


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "T5ForSequenceClassification"])
@torch.no_grad()
def test_decoders_read_the_text_one_place_later(class_name):
    model, _, source = source_for("t5", class_name)
    inputs = source(4, rng()).inputs
    assert torch.equal(inputs["decoder_input_ids"][:, 1:], inputs["input_ids"][:, :-1])
    assert (inputs["decoder_input_ids"][:, 0] == model.config.decoder_start_token_id).all()
    if class_name == "T5ForSequenceClassification":  # what it makes by itself
        own = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        assert torch.equal(model(**inputs).logits, own)


def test_a_batch_follows_from_its_random_numbers_alone():
    _, _, source = source_for("bert", "BertModel", lengths=(2, 9), pairs=0.5)
    before = random_states()
    first, again, other = source(8, rng()), source(8, rng()), source(8, rng(1))
    assert random_states() == before
    assert all(torch.equal(first.inputs[name], again.inputs[name]) for name in first.inputs)
    assert torch.equal(first.mixture.weights, again.mixture.weights)
    assert not torch.equal(first.inputs["input_ids"][:, :3], other.inputs["input_ids"][:, :3])
    assert first.mixture.weights.requires_grad
    assert not first.detach().mixture.weights.requires_grad


def test_ascent_finds_batches_on_which_two_models_differ():
    teacher, _, source = source_for("bert", "BertModel", lengths=(4, 8))
    student = tiny_model("bert", "BertModel")
    with torch.no_grad():
        for parameter in student.encoder.parameters():
            parameter.copy_((parameter / 0.1).round() * 0.1)

    def distance(seed):
        batch = source(16, rng(seed))
        with mixed_embeddings(teacher, batch.mixture), mixed_embeddings(student, batch.mixture):
            states = [model(**batch.inputs).last_hidden_state for model in (student, teacher)]
        return hidden_distance(*states, batch.inputs["attention_mask"])

    @torch.no_grad()
    def unseen():
        return sum(float(distance(seed)) for seed in range(100, 120)) / 20

    before = unseen()
    core = SamSga(
        torch.optim.SGD(student.parameters(), 0.0), torch.optim.Adam(source.parameters(), 3e-3, maximize=True)
    )
    for step in range(30):
        core.ascend(lambda step=step: distance(step))
    assert unseen() > 1.05 * before


def test_bad_lengths_shares_and_tokenizers_are_refused():
    model, tokenizer = tiny_model("bert", "BertModel"), tiny_tokenizer("bert")
    for options in ({"lengths": (0, 4)}, {"lengths": (5, 4)}, {"lengths": (30, 40)}, {"lengths": (1, 4), "pairs": 0.5}):
        with pytest.raises(SchemeError, match="lengths"):
            Template(model, tokenizer, **options)
    for pairs in (-0.1, 1.1):
        with pytest.raises(SchemeError, match="pairs"):
            Template(model, tokenizer, pairs=pairs)
    with pytest.raises(DataError, match="no padding token"):
        Template(tiny_model("gpt2", "GPT2Model"), tiny_tokenizer("gpt2"))
