"""Error and time of every strategy on MiniLM, by bits and granularity; appends to results/strategies.jsonl.

Per cell, with the scheme's default outliers: the relative error of the weights and of each matrix's output on real text
(mean over the matrices), STS-B Spearman on dev without tuning, and the seconds to quantize the model. It describes, it
does not choose: options are chosen elsewhere, on train. Rows that are there already are not run again.

Output errors need no stored inputs: ``|X D^T|^2 = trace(D H D^T)`` with the second moments ``H = X^T X`` of the inputs
that the float model gives each matrix.

    LOWBIT_DATA=/path/to/data python benchmarks/strategies.py
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rows import RESULTS, append, done
from stsb import (
    Sentences,
    StsB,
    Weights,
    block_linears,
    load_model,
    quantize_lowbit,
    replaced,
    sts_examples,
    weight_error,
)
from transformers import PreTrainedModel

import lowbit
from lowbit import Recipe, Scheme
from lowbit.demo import minilm_folder
from lowbit.errors import SchemeError
from lowbit.scheme import LEVELS
from lowbit.strategies import get_strategy, strategy_names

FILE = RESULTS / "strategies.jsonl"
KEY = ("model", "strategy", "bits", "granularity")
BITS = (8, 4, 3, 2)
GRANULARITIES = {"channel": None, "group": 64, "tensor": None}
SENTENCES = 1_000
OVERHEAD = 2.0  # effective bits over the code width beyond which levels are of no use


def main() -> None:
    """Run what is missing."""
    names = strategy_names()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=minilm_folder(), help="folder of the float model; default the demo's MiniLM")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--strategies", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--bits", nargs="+", type=int, default=BITS)
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    moments = input_moments(model, arguments.model)
    true, task = block_linears(model), StsB(arguments.model, "dev")
    expected = task.spearman(model)
    for scheme in schemes(model, arguments.strategies, arguments.bits):
        row = {"model": arguments.name, "strategy": scheme.strategy, "bits": scheme.bits}
        row["granularity"] = scheme.granularity if scheme.group_size is None else f"group {scheme.group_size}"
        if not arguments.again and done(FILE, row, KEY):
            continue
        found = quantize_lowbit(model, scheme)
        with replaced(model, found.weights):
            spearman = task.spearman(model)
        row |= {"levels": scheme.levels, "effective_bits": round(found.effective_bits, 4)}
        row |= {"weight_error": round(weight_error(true, found.weights), 6)}
        row |= {"output_error": round(output_error(true, found.weights, moments), 6)}
        row |= {"split": "dev", "spearman": round(spearman, 6), "loss": round(expected - spearman, 6)}
        append(FILE, row | {"seconds": round(found.seconds, 3), "threads": torch.get_num_threads()})


def schemes(model: PreTrainedModel, names: Sequence[str], bits: Sequence[int]) -> Iterator[Scheme]:
    """One scheme per granularity, width and strategy that has levels for it."""
    for granularity, size in GRANULARITIES.items():
        for width in bits:
            for name in names:
                scheme = first_of_use(model, width, granularity, size, name)
                if scheme is not None:
                    yield scheme


def first_of_use(model: PreTrainedModel, bits: int, granularity: str, size: int | None, name: str) -> Scheme | None:
    """The scheme with the default levels, or the first that the strategy can fit and that do not take too many bits."""
    for levels in ("", *LEVELS):
        scheme = Scheme(bits=bits, levels=levels, granularity=granularity, group_size=size, strategy=name)
        try:
            get_strategy(scheme)
        except SchemeError:
            continue
        if lowbit.plan(model, Recipe(scheme, embeddings=None)).effective_bits <= bits + OVERHEAD:
            return scheme
    return None


@torch.no_grad()
def input_moments(model: PreTrainedModel, folder: str | Path) -> Weights:
    """``X^T X`` [in, in] per matrix over the tokens of sentences of STS-B train, padding left out."""
    examples = sts_examples("train")
    sentences = Sentences(folder, examples.texts[: SENTENCES // 2] + examples.pairs[: SENTENCES // 2])
    moments: Weights = {}
    keep = torch.empty(0)

    def collect(path: str):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0][keep]
            moments[path] = moments.get(path, 0) + rows.t() @ rows

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(collect(path)) for path in block_linears(model)]
    for _, batch in sentences.batches():
        keep = batch["attention_mask"].bool()
        model(**batch)
    for hook in hooks:
        hook.remove()
    return moments


def output_error(true: Weights, weights: Weights, moments: Weights) -> float:
    """Relative error ``|X W^T - X W'^T| / |X W^T|`` (Frobenius), mean over the matrices."""
    errors = [
        math.sqrt(energy(weight - true[path], moments[path]) / energy(true[path], moments[path]))
        for path, weight in weights.items()
    ]
    return sum(errors) / len(errors)


def energy(weight: torch.Tensor, moments: torch.Tensor) -> float:
    """``|X W^T|^2`` of a weight [out, in] from the moments ``X^T X`` [in, in]."""
    return float(((weight @ moments) * weight).sum(dtype=torch.float64))


if __name__ == "__main__":
    main()
