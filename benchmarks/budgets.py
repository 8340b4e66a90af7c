"""Budgets of the whole model beside the same size spent evenly: MiniLM on STS-B dev, nothing tuned.

One row per recipe is appended to benchmarks/results/budgets.jsonl; recipes that are there already are not run again.

    LOWBIT_DATA=/path/to/data python benchmarks/budgets.py --model /path/to/MiniLM
"""

import argparse
from pathlib import Path

import torch
from rows import RESULTS, append, read_rows
from transformers import AutoModel

import lowbit
from lowbit.checkpoint import load_tokenizer, quiet_transformers
from lowbit.data import load_glue
from lowbit.loop import length_order
from lowbit.metrics import score
from lowbit.recipe import Recipe
from lowbit.scheme import OutlierRule, Scheme

FILE = RESULTS / "budgets.jsonl"
BATCH, MAX_LENGTH = 64, 128
TARGETS = (3.2, 3.5)
WIDTHS = (4, 3, 2)
WHOLE = {"matrix": "each matrix", "model": "the model"}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the float model")
    parser.add_argument("--name", default="MiniLM-L6", help="its name in the table")
    parser.add_argument("--only", choices=("bits", "spread"), nargs="+", default=["bits", "spread"])
    arguments = parser.parse_args()
    seen = {row["label"] for row in read_rows(FILE)}
    judge = Judge(arguments.model)
    for label, budget, recipe in recipes(arguments.model):
        if budget.split()[0] not in arguments.only or label in seen:
            continue
        model = load(arguments.model)
        plan = lowbit.quantize(model, recipe)
        spearman, distance = judge(model)
        row = {"model": arguments.name, "task": "stsb", "label": label, "budget": budget}
        row |= {"effective_bits": round(plan.effective_bits, 4), "float": judge.float}
        append(FILE, row | {"spearman": spearman, "loss": judge.float - spearman, "distance": distance})


def recipes(folder: str) -> list[tuple[str, str, Recipe]]:
    """Label, what is compared with what, and recipe of each run. Embeddings stay in float."""
    found = []
    for target in TARGETS:
        budget = f"bits {target}"
        even = Recipe(scheme=Scheme(bits=3, outliers=OutlierRule(share=even_share(folder, target))), embeddings=None)
        found.append((f"3 bits, {100 * even.scheme.outliers.share:.2f} % outliers", budget, even))
        found.append((f"mixed bits for {target}, 0.5 %", budget, Recipe(embeddings=None, target_bits=target)))
    for bits in WIDTHS:
        for spread in ("matrix", "model"):
            scheme = Scheme(bits=bits, outliers=OutlierRule(spread=spread))
            found.append((f"w{bits}, 0.5 % of {WHOLE[spread]}", f"spread w{bits}", Recipe(scheme, embeddings=None)))
    return found


def even_share(folder: str, target: float) -> float:
    """The share of outliers with which 3 bits everywhere come to the target: 32 bits each, column and value."""
    bare = lowbit.plan(folder, Recipe(scheme=Scheme(bits=3, outliers=OutlierRule()), embeddings=None))
    return 0.005 + (target - bare.effective_bits) / 32


class Judge:
    """Rank correlation with the human scores, and how far embeddings are from those of the float model."""

    def __init__(self, folder: str) -> None:
        examples = load_glue("stsb", "dev")
        self.labels = examples.labels
        self.texts = list(dict.fromkeys([*examples.texts, *examples.pairs]))
        place = {text: row for row, text in enumerate(self.texts)}
        self.first, self.second = ([place[text] for text in texts] for texts in (examples.texts, examples.pairs))
        self.tokenizer = load_tokenizer(Path(folder))
        encoded = self.tokenizer(self.texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        self.features = [{"input_ids": ids} for ids in encoded]
        self.reference = self.embed(load(folder))
        self.float = self.spearman(self.reference)

    def __call__(self, model) -> tuple[float, float]:
        """Spearman, and the mean cosine distance to the float model's embeddings of the same sentences."""
        embedded = self.embed(model)
        return self.spearman(embedded), 1 - float((embedded * self.reference).sum(1).mean())

    def spearman(self, embedded: torch.Tensor) -> float:
        """Rank correlation of the cosines of the pairs with the human scores."""
        cosines = (embedded[self.first] * embedded[self.second]).sum(1)
        return score(("spearman",), cosines.numpy(), self.labels)["spearman"]

    @torch.no_grad()
    def embed(self, model) -> torch.Tensor:
        """Mean over tokens of the last hidden states, normalised, float32 [sentences, width]."""
        embedded = torch.empty(len(self.texts), model.config.hidden_size)
        order = length_order(self.features)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = self.tokenizer.pad([self.features[row] for row in rows], return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            summed = (model(**batch)[0].float() * mask).sum(1)
            embedded[rows] = torch.nn.functional.normalize(summed / mask.sum(1), dim=1)
        return embedded


def load(folder: str):
    """The float32 base model, in evaluation mode."""
    with quiet_transformers():
        return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()
