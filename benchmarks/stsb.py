"""STS-B without tuning: a float model, copies whose block linears are replaced, and what their embeddings are worth."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModel, BatchEncoding, PreTrainedModel

import lowbit
from lowbit.arch import find_module, float_weight
from lowbit.checkpoint import load_tokenizer, quiet_transformers
from lowbit.data import Examples, load_glue
from lowbit.loop import length_order
from lowbit.metrics import score
from lowbit.recipe import Recipe

TRAIN_ROWS = 1_500  # as many as dev has
_BATCH = 64
_MAX_LENGTH = 128

Weights = dict[str, torch.Tensor]  # float32 [out, in] by module path


@dataclass(frozen=True)
class Quantized:
    """The dequantized block linears of one model, their effective bits and the seconds it took to quantize them."""

    weights: Weights
    effective_bits: float
    seconds: float


def load_model(folder: str | Path) -> PreTrainedModel:
    """The float32 base model in a folder, in evaluation mode."""
    with quiet_transformers():
        return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def block_linears(model: PreTrainedModel) -> Weights:
    """The weights that lowbit's plan quantizes, embeddings left out."""
    paths = [find_module(model, entry.name) for entry in lowbit.plan(model, _float_embeddings("w8")).quantized]
    modules = {path: model.get_submodule(path) for path in paths if path is not None}
    return {path: float_weight(module, module.weight.data) for path, module in modules.items()}


def quantize_lowbit(model: PreTrainedModel, recipe: str | Path | Mapping | lowbit.Recipe | lowbit.Scheme) -> Quantized:
    """The block linears under a recipe, whatever it says of embeddings: these stay in float."""
    copied = copy.deepcopy(model)
    start = time.perf_counter()
    plan = lowbit.quantize(copied, _float_embeddings(recipe))
    seconds = time.perf_counter() - start
    weights = {}
    for entry in plan.quantized:
        path = find_module(copied, entry.name)
        weights[path] = copied.get_submodule(path).tensor.dequantize()
    stored = sum(
        part.numel() * part.element_size()
        for path in weights
        for part in copied.get_submodule(path).tensor.to_tensors().values()
    )
    return Quantized(weights, 8 * stored / sum(weight.numel() for weight in weights.values()), seconds)


def quantize_each(model: PreTrainedModel, quantize: Callable[[torch.Tensor], tuple[torch.Tensor, int]]) -> Quantized:
    """The block linears by a function from a float16 weight to the dequantized one and the bits stored for it."""
    linears = block_linears(model)
    quantize(next(iter(linears.values())).half())  # imports, and compilers that run at first use, are not timed
    start = time.perf_counter()
    found = {path: quantize(weight.half()) for path, weight in linears.items()}
    seconds = time.perf_counter() - start
    bits = sum(stored for _, stored in found.values()) / sum(weight.numel() for weight in linears.values())
    return Quantized({path: weight.float() for path, (weight, _) in found.items()}, bits, seconds)


def weight_error(true: Weights, weights: Weights) -> float:
    """Relative error ``|W - W'| / |W|`` (Frobenius), mean over the matrices."""
    errors = [float((weight - true[path]).norm() / true[path].norm()) for path, weight in weights.items()]
    return sum(errors) / len(errors)


@contextmanager
def replaced(model: PreTrainedModel, weights: Weights) -> Iterator[None]:
    """Inside the block the model computes with these weights; afterwards with its own again."""
    linears = block_linears(model)
    own = {path: linears[path].clone() for path in weights}
    for path, weight in weights.items():
        linears[path].copy_(weight)
    try:
        yield
    finally:
        for path, weight in own.items():
            linears[path].copy_(weight)


class Sentences:
    """The sentences of a split, each tokenized once."""

    def __init__(self, folder: str | Path, texts: Sequence[str]) -> None:
        self._tokenizer = load_tokenizer(Path(folder))
        self.texts = list(dict.fromkeys(texts))
        encoded = self._tokenizer(self.texts, truncation=True, max_length=_MAX_LENGTH)["input_ids"]
        self._features = [{"input_ids": ids} for ids in encoded]

    def batches(self) -> Iterator[tuple[list[int], BatchEncoding]]:
        """Indices of sentences of similar length with their padded batch."""
        order = length_order(self._features)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            yield rows, self._tokenizer.pad([self._features[row] for row in rows], return_tensors="pt")

    @torch.no_grad()
    def embed(self, model: PreTrainedModel) -> torch.Tensor:
        """Mean over tokens of the last hidden state, normalised, float32 [sentences, width]."""
        embedded = torch.empty(len(self.texts), model.config.hidden_size)
        for rows, batch in self.batches():
            mask = batch["attention_mask"][..., None].float()
            summed = (model(**batch)[0].float() * mask).sum(1)
            embedded[rows] = torch.nn.functional.normalize(summed / mask.sum(1), dim=1)
        return embedded


class StsB:
    """A split of STS-B, scored by the cosine of sentence embeddings: all of dev, or a fixed sample of train."""

    def __init__(self, folder: str | Path, split: str) -> None:
        examples = sts_examples(split)
        self.rows = len(examples)
        self._labels = examples.labels
        self._sentences = Sentences(folder, [*examples.texts, *examples.pairs])
        place = {text: row for row, text in enumerate(self._sentences.texts)}
        self._first = [place[text] for text in examples.texts]
        self._second = [place[text] for text in examples.pairs]

    def spearman(self, model: PreTrainedModel) -> float:
        """Rank correlation of the cosines with the human scores."""
        embedded = self._sentences.embed(model)
        cosines = (embedded[self._first] * embedded[self._second]).sum(1)
        return score(("spearman",), cosines.numpy(), self._labels)["spearman"]


def sts_examples(split: str) -> Examples:
    """All of ``dev``, or 1,500 rows of ``train`` that are always the same."""
    examples = load_glue("stsb", split)
    return examples.sample(TRAIN_ROWS, seed=0) if split == "train" else examples


def _float_embeddings(recipe: str | Path | Mapping | lowbit.Recipe | lowbit.Scheme) -> Recipe:
    return replace(Recipe.parse(recipe), embeddings=None)
