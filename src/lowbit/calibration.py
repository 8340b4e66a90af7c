"""Inputs that stand in for data, and what a model's layers see of them: second moments, and the step for 8 bits."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.arch import position_limit
from lowbit.errors import DataError, WeightError
from lowbit.scheme import Scheme
from lowbit.strategies import get_strategy

_ROWS = 512
_WORDS = (4, 30)  # shortest and longest generated text
_BATCH = 32
_LONGEST = 512
_KEPT = 64  # rows of a call, by which a step is found
_INPUTS = Scheme(bits=8, granularity="tensor", outliers=None)
_WORD_STARTS = ("Ġ", "▁")  # how byte-level and sentencepiece vocabularies mark the first piece of a word

Batch = Mapping[str, torch.Tensor]
Text = str | tuple[str, str]


@dataclass(frozen=True)
class Inputs:
    """Where a model's inputs come from: ``texts``, or :func:`generated_inputs` with so many ``pairs``."""

    texts: Sequence[Text] | None = None
    pairs: float = 0.0

    def batches(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[Batch]:
        """The inputs in batches of similar length."""
        if self.texts is not None:
            return text_inputs(model, tokenizer, self.texts)
        return generated_inputs(model, tokenizer, pairs=self.pairs, seed=seed)


def generated_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pairs: float = 0.0, seed: int = 0
) -> list[Batch]:
    """512 texts of 4 to 30 whole words drawn from the vocabulary, frequent words more often, closed by a full stop.

    The texts mean nothing, but they are made of what real text is made of: vocabularies are sorted by frequency, so the
    n-th word is drawn with a probability of about 1/n (Zipf's law); the comma counts as the first. Evenly drawn tokens
    excite other directions than text does: GPTQ's output error on text is then almost twice as large.

    A share of the rows are ``pairs`` of texts, parted in the middle, as tasks such as STS-B have them. The second one
    repeats words of the first one in its places, from none to all of them, as texts that are to be compared do.
    """
    words = [",", *whole_words(tokenizer)]
    generator = torch.Generator().manual_seed(seed)
    chances = 1 / (torch.arange(len(words)) + 2.0)
    lengths = torch.randint(_WORDS[0], _WORDS[1] + 1, (_ROWS,), generator=generator).tolist()
    drawn = [torch.multinomial(chances, length, replacement=True, generator=generator).tolist() for length in lengths]
    are_pairs = (torch.rand(_ROWS, generator=generator) < pairs).tolist()
    texts: list[Text] = []
    for row, is_pair in zip(drawn, are_pairs, strict=True):
        spelled = [words[index] for index in row]
        texts.append(_paired(spelled, generator) if is_pair else _closed(spelled))
    return text_inputs(model, tokenizer, texts)


def _paired(words: list[str], generator: torch.Generator) -> tuple[str, str]:
    """The words as two texts, of which the second repeats words of the first."""
    first, second = words[: len(words) // 2], words[len(words) // 2 :]
    share = torch.rand(1, generator=generator)
    for place in (torch.rand(len(first), generator=generator) < share).nonzero().flatten().tolist():
        second[place] = first[place]
    return _closed(first), _closed(second)


def _closed(words: list[str]) -> str:
    return " ".join(words) + "."


def text_inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text]) -> list[Batch]:
    """Texts or pairs of texts, one a row, as a model's inputs in batches of similar length.

    No text at all raises :class:`DataError`. Sequence-to-sequence models read the text in the decoder, too, one place
    later.
    """
    given = [text for text in texts if "".join(text).strip()]
    if not given:
        raise DataError("the calibration text is empty; give some lines of text, or none for generated inputs")
    longest = min(_LONGEST, position_limit(model) or _LONGEST, tokenizer.model_max_length)
    batches: list[Batch] = []
    for columns in _alike(given):
        batch = dict(tokenizer(*columns, padding=True, truncation=True, max_length=longest, return_tensors="pt"))
        if "decoder_input_ids" in inspect.signature(model.forward).parameters:
            batch["decoder_input_ids"] = batch["input_ids"].roll(1, dims=1)
            batch["decoder_attention_mask"] = batch["attention_mask"]
        batches.append(batch)
    return batches


def _alike(texts: Sequence[Text]) -> Iterator[list[list[str]]]:
    """The columns of one batch after another: texts of similar length, or pairs of them, in two columns."""
    singles = sorted((text for text in texts if isinstance(text, str)), key=len)
    pairs = sorted((text for text in texts if not isinstance(text, str)), key=lambda pair: len("".join(pair)))
    for start in range(0, len(singles), _BATCH):
        yield [singles[start : start + _BATCH]]
    for start in range(0, len(pairs), _BATCH):
        yield [list(column) for column in zip(*pairs[start : start + _BATCH], strict=True)]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The alphabetic words of at least two letters that are one token, in the order of the vocabulary.

    A vocabulary without any raises :class:`DataError`.
    """
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    mark = next((mark for mark in _WORD_STARTS if any(piece.startswith(mark) for piece in vocabulary)), "")
    pieces = [piece.removeprefix(mark) for piece in vocabulary if piece.startswith(mark) and piece not in special]
    words = [piece for piece in pieces if piece.isalpha() and len(piece) > 1]
    if not words:
        raise DataError("the vocabulary has no whole words to generate inputs from; give calibration text")
    return words


def blocks(paths: Iterable[str]) -> list[list[str]]:
    """Neighbouring module paths of one transformer block together, in their order."""
    return [list(group) for _, group in itertools.groupby(paths, key=lambda path: re.split(r"(?<=\d)\.", path)[0])]


@torch.no_grad()
def second_moments(model: PreTrainedModel, paths: Sequence[str], batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Per module path the sum of x x^T over its inputs x, float32 [in, in], padding left out.

    A module that is never called has none. The model runs in eval mode; every module is in its own mode again
    afterwards. Inputs that are NaN or infinite raise :class:`WeightError`.
    """
    moments: dict[str, torch.Tensor] = {}
    for path, rows in _input_rows(model, paths, batches):
        product = rows.t() @ rows
        moments[path] = moments[path] + product if path in moments else product
    for path, matrix in moments.items():
        _check_finite(path, matrix)
    return moments


@torch.no_grad()
def input_steps(model: PreTrainedModel, paths: Sequence[str], batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    """Per module path the step of 8 bits with the smallest squared error of its inputs, float32 [1].

    It is found as the strategy ``mse`` finds that of a weight, on 64 random rows of each call and the one with the
    largest value: language models have rare tokens whose clipping would cost far more than their share. Inputs that
    are all 0 have the step 1. A module that is never called raises :class:`DataError`. Otherwise as
    :func:`second_moments`.
    """
    kept: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    for path, rows in _input_rows(model, paths, batches):
        magnitudes = rows.abs()  # of which the levels are those of a symmetric grid
        generator = torch.Generator().manual_seed(len(kept[path]))  # what sees the same inputs gets the same step
        drawn = torch.randperm(len(rows), generator=generator)[:_KEPT]
        largest = magnitudes.amax(dim=1).argsort(descending=True)[:1]
        kept[path] += [magnitudes[drawn], magnitudes[largest]]
    steps = {}
    for path, found in kept.items():
        if not any(map(len, found)):
            raise DataError(f"{path}: no calibration input reaches it; give other text, or `skip` it in the recipe")
        magnitudes = torch.cat(found)
        _check_finite(path, magnitudes)
        steps[path] = get_strategy(_INPUTS)(magnitudes[None], _INPUTS, None).scale
    return steps


def _input_rows(
    model: PreTrainedModel, paths: Sequence[str], batches: Iterable[Batch]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The inputs float32 [rows, in] of one call of a module after another, padding left out."""
    calls = None
    with evaluating(model):
        for batch in batches if paths else ():
            on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
            seen = _inputs_of(model, paths, on_device, calls)
            calls = sum(map(len, seen.values()))
            mask = on_device["attention_mask"].bool()
            for path, found in seen.items():
                for inputs in found:
                    yield path, (inputs[mask] if inputs.shape[:2] == mask.shape else inputs.flatten(0, -2)).float()


def _check_finite(path: str, seen: torch.Tensor) -> None:
    if not seen.isfinite().all():
        raise WeightError(f"{path}: its inputs are NaN or infinite; repair the checkpoint first")


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode inside the block; every module is in its own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Enough(Exception):
    """Every input that is asked for has been seen."""


def _inputs_of(
    model: PreTrainedModel, paths: Sequence[str], batch: Batch, enough: int | None
) -> dict[str, list[torch.Tensor]]:
    """What the modules at ``paths`` are called with, call by call: shared layers are called often.

    After ``enough`` calls the run ends: what follows the last of these modules costs time and shows nothing.
    """
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    def note(found: list[torch.Tensor]) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.append(inputs[0])
            if sum(map(len, seen.values())) == enough:
                raise _Enough

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(note(found)) for path, found in seen.items()]
    try:
        model(**batch)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen
