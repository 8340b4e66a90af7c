"""What a language model writes, in the tokens of another tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast

from lowbit.errors import UnsupportedModelError
from lowbit.zeroshot.spelling import Spelling

WORDS = ["film", "good", "bad", "un", "##ing", "##s", "café", ".", "?"]


def by_bytes():
    """A token for each byte of a text."""
    ids = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def by_bytes_of_the_whole_text():
    tokenizer = by_bytes()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def by_words():
    tokenizer = Tokenizer(WordPiece({token: index for index, token in enumerate(WORDS)}, unk_token="?"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


WRITER, READER = by_bytes(), by_words()
SPELLING = Spelling(WRITER, READER)


def spelled(text, length):
    tokens, places = SPELLING(torch.tensor([WRITER(text)["input_ids"]]), length)
    return READER.convert_ids_to_tokens(tokens[0].tolist()), places[0].tolist()


def test_a_word_of_many_tokens_is_one_and_begins_where_its_first_one_does():
    assert spelled("a good filming.", 4) == (["good", "film", "##ing", "."], [2, 7, 11, 14])


def test_a_character_of_two_bytes_is_one_place_of_the_text():
    assert spelled("a Caf\u00e9 film", 2) == (["café", "film"], [2, 8])


def test_the_word_of_the_first_token_is_left_out():
    """No state led to its beginning."""
    assert spelled("films film", 1) == (["film"], [6])


def test_a_reader_without_words_keeps_what_begins_behind_the_first_token():
    spelling = Spelling(WRITER, by_bytes_of_the_whole_text())
    tokens, places = spelling(torch.tensor([WRITER("a film")["input_ids"]]), 5)
    assert tokens.tolist() == [WRITER("a film")["input_ids"][1:]]
    assert places.tolist() == [[1, 2, 3, 4, 5]]


def test_behind_the_end_there_is_no_token_and_the_last_place():
    tokens, places = SPELLING(torch.tensor([WRITER("a bad film")["input_ids"]]), 4)
    assert tokens.tolist() == [[2, 0, -1, -1]]
    assert places.tolist() == [[2, 6, 9, 9]]
    tokens, places = SPELLING(torch.tensor([WRITER("film")["input_ids"]]), 2)
    assert tokens.tolist() == [[-1, -1]]
    assert places.tolist() == [[3, 3]]


@given(st.lists(st.sampled_from(["good", "film", "filming", "bad", "café", "unfilms", ".", "\u65e5"]), max_size=6))
def test_tokens_are_those_that_the_reader_makes_of_the_text(words):
    text = " ".join(["a", *words])
    expected = READER(text, return_offsets_mapping=True)
    tokens, places = SPELLING(torch.tensor([WRITER(text)["input_ids"]]), 30)
    count = len(expected["input_ids"]) - 1
    assert tokens[0, :count].tolist() == expected["input_ids"][1:]
    assert tokens[0, count:].eq(-1).all()
    starts = [len(text[:start].encode()) for start, _ in expected["offset_mapping"]]
    assert places[0, :count].tolist() == starts[1:]


def test_a_reader_that_does_not_tell_places_is_refused():
    with pytest.raises(UnsupportedModelError, match="SimpleNamespace does not say where its tokens are"):
        Spelling(WRITER, SimpleNamespace(is_fast=False))
