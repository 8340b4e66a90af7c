"""STS-B Spearman of MiniLM without any tuning, lowbit beside other libraries; appends to results/untuned.jsonl.

Every candidate quantizes the same matrices, the block linears of lowbit's plan. Its dequantized weights are put into a
float copy of the model, so that only the weights differ and nobody's kernels matter; embeddings stay in float for all.
Rows that are there already are not run again. Choose among options on ``--split train``, a fixed sample of 1,500 rows;
dev is for the table.

    LOWBIT_DATA=/path/to/data python benchmarks/untuned.py --split dev
"""

import argparse
import json
from pathlib import Path

from peers import PEERS, Peer
from rows import RESULTS, Row, append, done, read_rows
from stsb import Quantized, StsB, block_linears, load_model, quantize_each, quantize_lowbit, replaced, weight_error

from lowbit import Recipe, Scheme
from lowbit.demo import minilm_folder

FILE = RESULTS / "untuned.jsonl"
KEY = ("model", "split", "source", "label", "version")
RECIPES = (
    "w8",
    "w8o0",
    *(f"w{bits}{rest}" for bits in (4, 3, 2) for rest in ("", "o0", "o0.2", "o1", "g128o0", "g64o0", "g64", "g64o0.2")),
)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=minilm_folder(), help="folder of the float model; default the demo's MiniLM")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--split", choices=("train", "dev"), default="dev")
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help="short forms, recipe files, or schemes as JSON")
    packages = sorted({peer.package for peer in PEERS})
    parser.add_argument("--peers", nargs="*", default=packages, choices=packages, metavar="PACKAGE")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    arguments = parser.parse_args()
    study = Study(arguments.model, arguments.name, arguments.split, arguments.again)
    for peer in PEERS:
        if peer.package in arguments.peers:
            study.run_peer(peer)
    for text in arguments.recipes:
        study.run_recipe(text)


class Study:
    """One model on one split; the model, the sentences and the float score are made once, and only if needed."""

    def __init__(self, folder: str | Path, name: str, split: str, again: bool) -> None:
        self._model = load_model(folder)
        self._true = block_linears(self._model)
        self._task = StsB(folder, split)
        self._base = {"model": name, "split": split, "rows": self._task.rows}
        self._again = again
        self._float: float | None = None

    def run_recipe(self, text: str) -> None:
        """lowbit under one recipe."""
        recipe, label = parse(text)
        row = self._base | {"source": "lowbit", "label": label, "version": None}
        if self._again or not done(FILE, row, KEY):
            self._measure(row, quantize_lowbit(self._model, recipe))

    def run_peer(self, peer: Peer) -> None:
        """Another library; one that is not installed leaves a row that says so, unless there is a better one."""
        row = self._base | {"source": peer.package, "label": peer.option, "version": peer.version}
        if peer.version is None:
            if not done(FILE, row, [name for name in KEY if name != "version"]):
                append(FILE, row | {"absent": True})
        elif self._again or not done(FILE, row, KEY):
            self._measure(row, quantize_each(self._model, peer.quantize))

    def _measure(self, row: Row, found: Quantized) -> None:
        expected = self._float_score()
        with replaced(self._model, found.weights):
            spearman = self._task.spearman(self._model)
        measured = {
            "effective_bits": round(found.effective_bits, 4),
            "weight_error": round(weight_error(self._true, found.weights), 6),
            "spearman": round(spearman, 6),
            "float_spearman": expected,
            "loss": round(expected - spearman, 6),
            "seconds": round(found.seconds, 3),
        }
        append(FILE, row | measured)

    def _float_score(self) -> float:
        """The float model's score, from a row of this split where there is one."""
        if self._float is None:
            rows = [row for row in read_rows(FILE) if all(row[name] == value for name, value in self._base.items())]
            known = [row["float_spearman"] for row in rows if "float_spearman" in row]
            self._float = known[-1] if known else round(self._task.spearman(self._model), 6)
        return self._float


def parse(text: str) -> tuple[Recipe, str]:
    """A recipe and its name in the table: that of its file, else its scheme in words."""
    recipe = Recipe.parse(Scheme.from_dict(json.loads(text)) if text.startswith("{") else text)
    is_file = text.endswith((".yaml", ".yml", ".json"))
    return recipe, Path(text).stem if is_file else str(recipe.scheme)


if __name__ == "__main__":
    main()
