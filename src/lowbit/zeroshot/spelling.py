"""What a language model writes, in the tokens that another model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lowbit.errors import UnsupportedModelError

NO_TOKEN = -1  # behind the end of a text


class Spelled(NamedTuple):
    """``tokens`` int64 [rows, length], the reader's, ``NO_TOKEN`` behind the end of a text.

    ``places`` int64 [rows, length]: in which of the writer's tokens each of them begins; the last one behind the end.
    """

    tokens: torch.Tensor
    places: torch.Tensor


class Spelling:
    """Texts in the tokens of one tokenizer as another one would have made them.

    A word that the ``writer`` puts together from three pieces may be one token of the ``reader``, whose model has never
    read these pieces in a row. A reader that does not say where in a text its tokens are raises
    :class:`UnsupportedModelError`.
    """

    def __init__(self, writer: PreTrainedTokenizerBase, reader: PreTrainedTokenizerBase) -> None:
        if not reader.is_fast:
            raise UnsupportedModelError(
                f"{type(reader).__name__} does not say where its tokens are in a text; save the model with a fast one"
            )
        self._writer, self._reader = writer, reader

    def __call__(self, written: torch.Tensor, length: int) -> Spelled:
        """The first ``length`` tokens of whole words behind the first token of ``written``, int64 [rows, tokens].

        Of a reader that splits no text into words, the tokens that begin behind the first one.
        """
        last = written.shape[1] - 1
        tokens = torch.full((len(written), length), NO_TOKEN)
        places = torch.full_like(tokens, last)
        for row, (text, ends) in enumerate(map(self._read, written.tolist())):
            encoded = self._reader(text, add_special_tokens=False, return_offsets_mapping=True)
            starts = torch.tensor([start for start, _ in encoded["offset_mapping"]], dtype=torch.long)
            begun = torch.searchsorted(ends, starts, right=True).clamp_max(last)
            kept = _behind(begun.tolist(), encoded.word_ids())[:length]
            tokens[row, : len(kept)] = torch.tensor(encoded["input_ids"], dtype=torch.long)[kept]
            places[row, : len(kept)] = begun[kept]
        return Spelled(tokens, places)

    def _read(self, ids: list[int]) -> tuple[str, torch.Tensor]:
        """A text, and where in it each of its tokens ends."""
        parts = [ids[: end + 1] for end in range(len(ids))]
        texts = self._writer.batch_decode(parts, clean_up_tokenization_spaces=False)
        return texts[-1], torch.tensor([len(text) for text in texts])


def _behind(places: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """Which tokens are of no word that begins in place 0; if all are, which begin elsewhere."""
    opening = {word for word, place in zip(words, places, strict=True) if place == 0}
    whole = [index for index, word in enumerate(words) if word not in opening]
    return whole or [index for index, place in enumerate(places) if place > 0]
