"""Batches of text: given ones, and ones that a language model writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import load_causal_lm
from lowbit.arch import position_limit
from lowbit.calibration import Text
from lowbit.checkpoint import checkpoint_folder, load_tokenizer
from lowbit.errors import DataError, SchemeError
from lowbit.hf import is_causal, language_kind
from lowbit.loop import model_digest
from lowbit.zeroshot.batches import GeneratedBatch, decoder_start, length_chances, read_later, repeated, spread_length
from lowbit.zeroshot.options import ZeroShotOptions
from lowbit.zeroshot.writing import Writer


def share_of_pairs(texts: Sequence[Text]) -> float:
    """How many of the texts are pairs, from 0 to 1; 0 where there are none."""
    return sum(not isinstance(text, str) for text in texts) / max(1, len(texts))


class RealTexts:
    """Rows drawn from given texts or pairs of texts; none raises :class:`DataError`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: ZeroShotOptions,
        texts: Sequence[Text],
    ) -> None:
        self._texts = [text for text in texts if "".join(text).strip()]
        if not self._texts:
            raise DataError("no texts to train on; give some, one a line")
        if len({isinstance(text, str) for text in self._texts}) > 1:
            raise DataError("some rows are texts and some are pairs of texts; give one kind")
        self._encode = _Encoder(model, tokenizer, options.lengths[1])

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of whole texts, cut to the greatest length."""
        chosen = torch.randint(len(self._texts), (rows,), generator=rng).tolist()
        return self._encode([self._texts[index] for index in chosen])

    def players(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    def to(self, device: torch.device) -> RealTexts:
        """Itself."""
        return self

    def digest(self) -> str:
        """SHA-256 of the texts."""
        return hashlib.sha256(json.dumps(self._texts).encode()).hexdigest()


class SampledTexts:
    """Text written by a causal language model, in the target's tokens (LLM-QAT, Liu et al. 2023, arXiv 2305.17888).

    :class:`Writer` says how. The language model is ``options.generator``, else the target itself; a target that is none
    raises :class:`SchemeError`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: ZeroShotOptions) -> None:
        self._encode = _Encoder(model, tokenizer, options.lengths[1])
        self._pairs = options.pairs
        if options.generator is not None:
            folder = checkpoint_folder(options.generator)
            model, tokenizer = load_causal_lm(folder, dtype=torch.float32).eval(), load_tokenizer(folder)
        elif not is_causal(model.config) or language_kind(model) != "causal":
            raise SchemeError(f"{type(model).__name__} writes no text; give --generator a causal language model")
        self._model, self._tokenizer, self._writer = model, tokenizer, Writer(model, tokenizer)
        room = options.lengths[1] if self._writer.room is None else self._writer.room
        self._lengths = min(options.lengths[0], room), min(options.lengths[1], room)

    def draw(self, rows: int, rng: torch.Generator) -> GeneratedBatch:
        """A batch of new texts; with the chance ``pairs`` all of them are in two parts."""
        chances, parted = length_chances(rows, rng), torch.rand(1, generator=rng).item() < self._pairs
        lengths = [spread_length(*self._lengths, chance) for chance in chances]
        written = self._writer.write(rows, max(lengths), rng, lambda output: output.logits)
        cut = [row[:length] for row, length in zip(written.tolist(), lengths, strict=True)]
        texts = [text for text in self._tokenizer.batch_decode(cut) if text.strip()]
        if not texts:
            raise DataError("the language model writes blanks only; give another generator")
        if not parted:
            return self._encode(texts)
        repeats = repeated(len(texts), max(lengths), rng)
        return self._encode([_parted(*pair) for pair in zip(texts, repeats, strict=True)])

    def players(self) -> list[nn.Parameter]:
        """Nothing."""
        return []

    def to(self, device: torch.device) -> SampledTexts:
        """Itself, on a device."""
        self._model.to(device)
        return self

    def digest(self) -> str:
        """SHA-256 of the language model."""
        return model_digest(self._model)


class _Encoder:
    """Makes a model's inputs of texts, padded on the right and cut to ``longest`` tokens beside the special ones."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._limit = min(position_limit(model) or tokenizer.model_max_length, tokenizer.model_max_length)
        self._decoder_start = decoder_start(model)

    def __call__(self, texts: Sequence[Text]) -> GeneratedBatch:
        firsts = [text if isinstance(text, str) else text[0] for text in texts]
        seconds = None if isinstance(texts[0], str) else [text[1] for text in texts]
        special = self._tokenizer.num_special_tokens_to_add(pair=seconds is not None)
        inputs = dict(
            self._tokenizer(
                firsts,
                seconds,
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=min(self._longest + special, self._limit),
                return_tensors="pt",
            )
        )
        if self._decoder_start is not None:
            inputs["decoder_input_ids"] = read_later(inputs["input_ids"], self._decoder_start)
        return GeneratedBatch(inputs)


def _parted(text: str, repeats: Sequence[bool]) -> tuple[str, str]:
    """A text in two halves of as many words; the second one has the first one's where it ``repeats`` them."""
    words = text.split()
    middle = len(words) // 2 or 1
    first, second = words[:middle], words[middle:] or words[:1]
    second = [first[place] if place < middle and repeats[place] else word for place, word in enumerate(second)]
    return " ".join(first), " ".join(second)
