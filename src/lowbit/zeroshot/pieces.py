"""The pieces of a tokenizer's vocabulary, in a form in which different tokenizers meet."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lowbit.errors import UnsupportedModelError

# What marks the start of a word, and for WordPiece that a piece is none.
_MARKS = _BYTE_LEVEL, _SENTENCE_PIECE, _WORD_PIECE = "Ġ", "▁", "##"
# Rows that no text reaches: BERT's, OPT's, and the bytes that sentencepiece falls back to.
_UNUSED = re.compile(r"\[unused\d+\]|madeupword\d+|<0x[0-9A-F]{2}>")
# GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from 256 on, in their order.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE}
_BYTES |= {chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


class Piece(NamedTuple):
    """``starts``: whether the piece begins a word; False for what holds no letter or digit, which begins none."""

    starts: bool
    text: str

    def folded(self) -> Piece:
        """The same without case and accents, as an uncased vocabulary would write it."""
        letters = unicodedata.normalize("NFD", self.text.casefold())
        return Piece(self.starts, "".join(c for c in letters if not unicodedata.combining(c)))


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of what text is made of, int64, ascending: neither special nor unused tokens."""
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [i for token, i in tokenizer.get_vocab().items() if i not in special and not _UNUSED.fullmatch(token)]
    return torch.tensor(sorted(found))


def pieces(tokenizer: PreTrainedTokenizerBase) -> dict[int, Piece]:
    """The text of every ordinary id that has one; a byte-level piece that ends inside a character has none."""
    mark = _mark(tokenizer.get_vocab())
    found = {index: _piece(token, mark) for index, token in _tokens(tokenizer).items()}
    return {index: piece for index, piece in found.items() if piece is not None}


def shared_pieces(source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which ids of two tokenizers are the same piece: int64 [shared, 2], a row per id of ``target``, ascending.

    The same token where both have it and write pieces alike; else the same text; else the same but for case and
    accents, the first of several. None at all raises :class:`UnsupportedModelError`.
    """
    exact: dict[Piece, int] = {}
    folded: dict[Piece, int] = {}
    for index, piece in pieces(source).items():
        exact.setdefault(piece, index)
        folded.setdefault(piece.folded(), index)
    same_kind = _mark(source.get_vocab()) == _mark(target.get_vocab())
    same = {token: index for index, token in _tokens(source).items()} if same_kind else {}
    ours = pieces(target)
    pairs = []
    for index, token in _tokens(target).items():
        match = same.get(token)
        if match is None and index in ours:
            match = exact.get(ours[index], folded.get(ours[index].folded()))
        if match is not None:
            pairs.append((match, index))
    if not pairs:
        raise UnsupportedModelError("the two vocabularies share no piece; give a generator for the target's language")
    return torch.tensor(pairs)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The ordinary tokens as the vocabulary spells them, by id, ascending."""
    ordinary = ordinary_ids(tokenizer).tolist()
    return dict(zip(ordinary, tokenizer.convert_ids_to_tokens(ordinary), strict=True))


def _mark(vocabulary: Iterable[str]) -> str:
    """The mark that most of its tokens carry; empty where none does."""
    counts = Counter(
        mark for token in vocabulary for mark in _MARKS if token.startswith(mark) and len(token) > len(mark)
    )
    return counts.most_common(1)[0][0] if counts else ""


def _piece(token: str, mark: str) -> Piece | None:
    if mark == _WORD_PIECE:
        starts, text = not token.startswith(mark) or token == mark, token.removeprefix(mark) or token
    elif mark:
        spaced = _from_bytes(token) if mark == _BYTE_LEVEL else token.replace(mark, " ")
        starts, text = spaced[:1].isspace(), spaced.strip()
    else:
        starts, text = True, token
    if not text or "\ufffd" in text:
        return None
    return Piece(starts and any(map(str.isalnum, text)), unicodedata.normalize("NFC", text))


def _from_bytes(token: str) -> str:
    """What a byte-level token stands for, U+FFFD where its bytes are no characters; others are as they are."""
    if not all(map(_BYTES.__contains__, token)):
        return token
    return bytes(_BYTES[c] for c in token).decode("utf-8", errors="replace")
