"""States become mixtures over the target's embedding rows."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from lowbit.errors import SchemeError, UnsupportedModelError
from lowbit.zeroshot import LanguageModelGenerator, TransformerGenerator, aligned_adaptation, random_adaptation
from lowbit.zeroshot.adaptation import FeatureAdaptation, Mixing, _put_first
from lowbit.zeroshot.generator import States
from lowbit.zeroshot.pieces import ordinary_ids
from tests.models import WORDS, tiny_model, tiny_tokenizer
from tests.tiny import random_states

K = 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def writing_for(reader):
    return LanguageModelGenerator(tiny_model("opt", "OPTForCausalLM"), tiny_tokenizer("opt"), reader)


@pytest.fixture(scope="module")
def language_model():
    return writing_for(tiny_tokenizer("opt"))


def written(generator, rows=2, tokens=3):
    return generator.states(rows, tokens, rng(), nn.Identity())


def aligned(arch, class_name, **changes):
    tokenizer, mixing = tiny_tokenizer(arch), Mixing(candidates=K, **changes)
    return aligned_adaptation(writing_for(tokenizer), tiny_model(arch, class_name, seed=1), tokenizer, mixing)


def test_the_same_tokenizer_gives_the_models_own_prediction(language_model):
    adaptation = aligned("opt", "OPTForSequenceClassification")
    ordinary = ordinary_ids(language_model.tokenizer)
    assert adaptation.shared == len(ordinary) == len(WORDS)
    assert torch.equal(adaptation.ids, ordinary)
    assert torch.equal(adaptation.keys, language_model.output_table[ordinary])
    assert torch.equal(adaptation.map.weight, torch.eye(language_model.width))
    states = written(language_model).values
    assert torch.equal(adaptation.map(states), states)
    assert torch.equal(adaptation.rows[ordinary], torch.arange(len(WORDS)))
    assert adaptation.rows.ge(0).sum() == len(WORDS)


def test_pieces_that_only_the_target_has_get_keys_from_their_rows():
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens(["unheard"])
    target = tiny_model("bert", "BertModel", seed=1)
    new = tokenizer.convert_tokens_to_ids("unheard")
    table, film = target.get_input_embeddings().weight.data, tokenizer.convert_tokens_to_ids("film")
    table[new] = table[film]  # the same row, so a key like that of the film is expected
    adaptation = aligned_adaptation(writing_for(tokenizer), target, tokenizer, Mixing(candidates=K))
    assert adaptation.shared == len(WORDS)
    keys = dict(zip(adaptation.ids.tolist(), adaptation.keys, strict=True))
    distances = {index: float((key - keys[new]).norm()) for index, key in keys.items() if index != new}
    assert min(distances, key=distances.__getitem__) == film


def test_rows_are_drawn_as_their_scores_say():
    keys = torch.tensor([[3.0], [2.0], [0.0], [-1.0]])
    adaptation = FeatureAdaptation(torch.tensor([4, 5, 7, 9]), keys, torch.eye(1), Mixing(candidates=2))
    for needs_grad in (True, False):
        with torch.set_grad_enabled(needs_grad):
            ids, weights = adaptation(States(torch.ones(100, 200, 1)), rng())
        assert torch.equal(weights.argmax(-1), torch.zeros(100, 200, dtype=torch.long))
        shares = torch.stack([(ids[..., 0] == index).float().mean() for index in adaptation.ids])
        torch.testing.assert_close(shares, torch.softmax(keys[:, 0], 0), atol=0.01, rtol=0)


def test_what_was_written_is_the_best_row_where_the_target_has_it():
    """The other candidates are what they were, and each of them is there once."""
    keys = torch.tensor([[3.0], [2.0], [0.0], [-1.0]])
    tokens = torch.tensor([[-1, 4, 7, 9]]).expand(50, 4)
    states = States(torch.ones(50, 4, 1).requires_grad_(True), tokens)
    ordinary, mixing = torch.tensor([4, 5, 7, 9]), Mixing(candidates=3, strays=0.0)
    adaptation = FeatureAdaptation(ordinary, keys, torch.eye(1), mixing)
    ids, weights = adaptation(states, rng(1))
    assert ids[:, 1:, 0].unique(dim=0).tolist() == [[4, 7, 9]]
    assert weights[..., 0].eq(1).all()
    assert all(len(set(row)) == 3 for row in ids.flatten(0, 1).tolist())
    before, _ = adaptation(States(states.values), rng(1))
    assert before[:, 1:, 0].unique().numel() == 4
    with torch.no_grad():
        best, ones = adaptation(states, rng())
    assert best.shape == ones.shape == (50, 4, 1)
    assert torch.equal(best[:, 1:], ids[:, 1:, :1])
    assert ones.eq(1).all()
    (weights * torch.arange(3)).sum().backward()
    assert states.values.grad.ne(0).all()


def test_what_is_written_first_changes_places_with_the_best_row():
    places = torch.tensor([[[3, 1, 2], [3, 1, 2], [3, 1, 2], [3, 1, 2]]])
    given = torch.tensor([[-1, 3, 2, 0]])
    assert _put_first(places, given).tolist() == [[[3, 1, 2], [3, 1, 2], [2, 1, 3], [0, 1, 2]]]


def test_strays_are_whole_texts_of_rows_of_the_table():
    tokens = torch.full((400, 40), 7)
    for strays in (0.0, 0.25, 1.0):
        mixing = Mixing(candidates=2, strays=strays)
        adaptation = FeatureAdaptation(torch.arange(1000), torch.zeros(1000, 1), torch.eye(1), mixing)
        ids, _ = adaptation(States(torch.ones(400, 40, 1), tokens), rng())
        drawn = (ids[..., 0] != 7).float().mean(1)
        assert ((drawn == 0) | (drawn > 0.9)).all()
        assert abs((drawn > 0).float().mean() - strays) < 0.06
        assert strays == 0 or len(ids[drawn > 0, :, 0].unique()) > 800


def test_a_hard_choice_is_one_row_with_the_gradients_of_the_mixture(language_model):
    hard, soft = (aligned("bert", "BertModel", hard=hard) for hard in (True, False))
    values = written(language_model).values.detach().requires_grad_(True)
    ids, weights = hard(States(values), rng(1))
    soft_ids, soft_weights = soft(States(values), rng(1))
    assert torch.equal(ids, soft_ids)
    assert torch.equal(weights.detach().sort().values[..., -2:], torch.tensor([0.0, 1.0]).expand(2, 3, 2))
    assert torch.equal(weights.argmax(-1), soft_weights.argmax(-1))
    torch.testing.assert_close(soft_weights.sum(-1), torch.ones(2, 3))
    factors = torch.randn(weights.shape, generator=rng(2))
    gradients = [torch.autograd.grad((w * factors).sum(), values)[0] for w in (weights, soft_weights)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_temperature_sharpens(language_model):
    states = written(language_model)
    largest = [
        aligned("bert", "BertModel", hard=False, temperature=t)(states, rng(1))[1].amax(-1).mean()
        for t in (0.1, 1.0, 10.0)
    ]
    assert largest[0] > largest[1] > largest[2]


def test_candidates_are_distinct_ordinary_rows(language_model):
    ordinary = ordinary_ids(tiny_tokenizer("roberta"))
    ids, weights = aligned("roberta", "RobertaModel")(written(language_model, 4, 6), rng())
    assert ids.shape == weights.shape == (4, 6, K)
    assert torch.isin(ids, ordinary).all()
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()


def test_gradients_reach_generator_and_map():
    target, tokenizer = tiny_model("albert", "AlbertModel"), tiny_tokenizer("albert")
    for generator in (writing_for(tokenizer), TransformerGenerator(32, seed=0)):
        if isinstance(generator, LanguageModelGenerator):
            adaptation = aligned_adaptation(generator, target, tokenizer, Mixing(candidates=K))
        else:
            adaptation = random_adaptation(generator.width, target, tokenizer, Mixing(candidates=K))
        generator.zero_grad()
        _, weights = adaptation(written(generator), rng())
        (weights * torch.arange(K)).sum().backward()
        assert adaptation.map.weight.grad.abs().sum() > 0
        assert sum(p.grad.abs().sum() for p in generator.parameters() if p.grad is not None) > 0


def test_a_random_map_follows_from_its_seed_and_has_scores_of_size_one():
    target, tokenizer = tiny_model("albert", "AlbertModel"), tiny_tokenizer("albert")
    before = random_states()
    first, again, other = (
        random_adaptation(256, target, tokenizer, Mixing(candidates=K), seed=seed) for seed in (0, 0, 1)
    )
    assert random_states() == before
    assert torch.equal(first.map.weight, again.map.weight)
    assert not torch.equal(first.map.weight, other.map.weight)
    assert first.keys.shape == (len(WORDS), 24)
    states = written(TransformerGenerator(256, seed=0), 8, 16).values
    assert 0.5 < (first.map(states) @ first.keys.t()).std() < 2
    torch.testing.assert_close(first.keys.norm(dim=1), torch.ones(len(WORDS)))


def test_bad_options_are_refused():
    target, tokenizer = tiny_model("bert", "BertModel"), tiny_tokenizer("bert")
    with pytest.raises(SchemeError, match="15 candidates of 14 rows"):
        aligned_adaptation(writing_for(tokenizer), target, tokenizer, Mixing(candidates=15))
    for changes in ({"candidates": 0}, {"temperature": 0}, {"temperature": float("nan")}):
        with pytest.raises(SchemeError, match="must be positive"):
            Mixing(**changes)
    with pytest.raises(SchemeError, match=r"a share of 1\.5 strays"):
        Mixing(strays=1.5)


def test_a_generator_for_another_reader_is_refused(language_model):
    with pytest.raises(SchemeError, match="load it with reader=tokenizer"):
        aligned_adaptation(language_model, tiny_model("bert", "BertModel"), tiny_tokenizer("bert"))


def test_a_generator_of_another_language_is_refused():
    target = tiny_model("bert", "BertModel")
    known, foreign = {"?": 0, "film": 1}, {f"слово{i}": 2 + i for i in range(60)}
    none = words_of({"?": 0} | foreign)
    with pytest.raises(UnsupportedModelError, match="share no piece"):
        aligned_adaptation(writing_for(none), target, none)
    few = words_of(known | {f"слово{i}": 2 + i for i in range(150)})
    target.resize_token_embeddings(160)
    with pytest.raises(UnsupportedModelError, match="share 1 of 151"):
        aligned_adaptation(writing_for(few), target, few)


def words_of(ids):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(ids, unk_token="?")), unk_token="?")
