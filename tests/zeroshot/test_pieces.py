"""Pieces of WordPiece, byte-level and sentencepiece vocabularies, in one form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from lowbit.errors import UnsupportedModelError
from lowbit.zeroshot.pieces import Piece, ordinary_ids, pieces, shared_pieces
from tests.models import WORDS, tiny_tokenizer

# No text begins with a vocabulary's own mark: sentencepiece replaces spaces by it, and WordPiece splits punctuation.
characters = st.characters(codec="utf-8", exclude_categories=["Z", "C", "M"], exclude_characters="▁")
words = st.text(characters, min_size=1, max_size=6).filter(lambda text: not text.startswith("##"))


def wrapped(model, tokens, **special):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model(tokens)), **special)


def ids_of(tokens):
    return {token: index for index, token in enumerate(tokens)}


def word_piece(entries):
    """A WordPiece vocabulary of (starts, text), after its special and unused tokens."""
    tokens = ["[PAD]", "[unused0]", "[unused17]", *(text if starts else f"##{text}" for starts, text in entries)]
    return wrapped(lambda ids: WordPiece(ids, unk_token="[PAD]"), ids_of(tokens), pad_token="[PAD]")


def byte_level(entries):
    alphabet = ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = ["<pad>", *(alphabet.pre_tokenize_str(f" {t}" if starts else t)[0][0] for starts, t in entries)]
    return wrapped(lambda ids: BPE(ids, []), ids_of(tokens), pad_token="<pad>")


def sentence_piece(entries):
    tokens = ["<pad>", "<0x0A>", *(f"▁{text}" if starts else text for starts, text in entries)]
    return wrapped(Unigram, [(token, 0.0) for token in tokens], pad_token="<pad>")


KINDS = [word_piece, byte_level, sentence_piece]
# Enough marked pieces for each kind to be recognised.
FEW = [(True, "the"), (True, "film"), (False, "ing"), (False, "ed"), (True, "a"), (False, "s")]


def set_of(tokenizer):
    return set(pieces(tokenizer).values())


@pytest.mark.parametrize("kind", KINDS)
def test_word_starts_and_continuations_are_told_apart(kind):
    assert set_of(kind(FEW)) == {Piece(*entry) for entry in FEW}


@given(text=words, starts=st.booleans())
def test_the_same_piece_is_the_same_in_every_vocabulary(text, starts):
    found = [set_of(kind([*FEW, (starts, text)])) for kind in KINDS]
    assert found[0] == found[1] == found[2]


@given(text=words)
def test_folding_twice_is_folding_once(text):
    once = Piece(True, text).folded()
    assert once.folded() == once


def test_punctuation_starts_no_word():
    assert set_of(word_piece([*FEW, (True, ",")])) - set_of(word_piece(FEW)) == {Piece(False, ",")}
    assert set_of(byte_level([*FEW, (False, ",")])) - set_of(byte_level(FEW)) == {Piece(False, ",")}


def test_half_a_character_is_no_piece():
    whole = byte_level([*FEW, (False, "é")])
    tokens = [*whole.get_vocab(), "Ã"]
    half = wrapped(lambda ids: BPE(ids, []), ids_of(tokens), pad_token="<pad>")
    assert tokens.index("Ã") not in pieces(half)
    assert tokens.index("Ã") in ordinary_ids(half)


def test_special_and_unused_tokens_are_not_ordinary():
    assert ordinary_ids(word_piece(FEW)).tolist() == list(range(3, 3 + len(FEW)))
    assert ordinary_ids(sentence_piece(FEW)).tolist() == list(range(2, 2 + len(FEW)))
    tokenizer = tiny_tokenizer("bert")
    assert tokenizer.convert_ids_to_tokens(ordinary_ids(tokenizer).tolist()) == WORDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_shares_everything_with_itself(kind):
    tokenizer = kind([*FEW, (True, "The"), (True, "(")])
    ordinary = ordinary_ids(tokenizer)
    assert torch.equal(shared_pieces(tokenizer, tokenizer), torch.stack([ordinary, ordinary], 1))


def test_vocabularies_meet_on_what_they_share():
    source = byte_level([(True, "film"), (True, "The"), (False, "ing"), (True, "Ungern"), (True, "café"), (False, ",")])
    entries = [(True, "the"), (False, "ing"), (True, "film"), (False, "film"), (True, "cafe"), (True, ",")]
    target = word_piece(entries)
    theirs = source.convert_ids_to_tokens(shared_pieces(source, target)[:, 0].tolist())
    ours = target.convert_ids_to_tokens(shared_pieces(source, target)[:, 1].tolist())
    assert dict(zip(ours, theirs, strict=True)) == {
        "the": "ĠThe",
        "##ing": "ing",
        "film": "Ġfilm",
        "cafe": "ĠcafÃ©",
        ",": ",",
    }


def test_the_same_text_comes_before_the_same_but_for_case():
    source = byte_level([(True, "The"), (True, "the"), (False, "s")])
    target = word_piece([(True, "the"), (True, "The"), (False, "s")])
    pairs = shared_pieces(source, target)
    theirs, ours = (
        source.convert_ids_to_tokens(pairs[:, 0].tolist()),
        target.convert_ids_to_tokens(pairs[:, 1].tolist()),
    )
    assert list(zip(theirs, ours, strict=True)) == [("Ġthe", "the"), ("ĠThe", "The"), ("s", "##s")]


def test_vocabularies_without_a_common_piece_are_refused():
    with pytest.raises(UnsupportedModelError, match="share no piece"):
        shared_pieces(byte_level([(True, "film")]), word_piece([(True, "книга"), (False, "ми")]))


def test_a_vocabulary_without_marks_is_one_of_whole_words():
    tokenizer = wrapped(lambda ids: WordLevel(ids, unk_token="?"), ids_of(["?", "good", "film"]), unk_token="?")
    assert set_of(tokenizer) == {Piece(True, "good"), Piece(True, "film")}
