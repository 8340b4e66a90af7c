"""What differs between tuning on rows with labels and on plain text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import CAUSAL_LM, load_causal_lm, load_classifier
from lowbit.checkpoint import read_config
from lowbit.data import TaskData, TextData, encode, text_size, token_blocks
from lowbit.errors import AdapterError, DataError
from lowbit.hf import is_quantized
from lowbit.loop import Progress
from lowbit.scoring import check_metrics, score_model, score_text
from lowbit.tuning.batches import Row, one_item
from lowbit.tuning.options import TuneOptions

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class LabelTask:
    """A classifier, or a regression, of rows with labels."""

    data: TaskData
    items = staticmethod(one_item)

    def rows(self, tokenizer: PreTrainedTokenizerBase, options: TuneOptions) -> tuple[list[Row], list[Row]]:
        """Tokenized rows to train on and held-out ones; what would stop scoring stops here."""
        check_metrics(self.data)
        train = self.data.training_rows()
        if not options.hold_out:
            return encode(train, tokenizer, options.max_length), []
        kept, held_out = train.split(options.hold_out, options.seed)
        return encode(kept, tokenizer, options.max_length), encode(held_out, tokenizer, options.max_length)

    def load(self, folder: Path, seed: int) -> PreTrainedModel:
        """The model with a fresh head, in float32."""
        return load_classifier(folder, self.data.label_names, seed=seed, dtype=torch.float32)[0]

    def teacher(self, folder: Path) -> PreTrainedModel:
        """A fine-tuned model of the same labels; one without a trained head raises AdapterError."""
        model, fresh = load_classifier(folder, self.data.label_names, seed=0, dtype=torch.float32)
        if is_quantized(model):
            raise AdapterError(f"the teacher {folder} is quantized; give the float model that was fine-tuned")
        known = tuple(read_config(folder).id2label.values())
        if self.data.label_names is not None and known != self.data.label_names and known[0] != "LABEL_0":
            raise AdapterError(
                f"the teacher {folder} knows the labels {', '.join(known)}, the task "
                f"{', '.join(self.data.label_names)}; give one with the same labels in the same order"
            )
        if fresh:
            raise AdapterError(f"the teacher {folder} has no trained {min(fresh)!r}; fine-tune it for the task first")
        return model

    def fields(self) -> dict[str, Any]:
        """The fields of AdapterInfo that say what the adapter is for."""
        data = self.data
        return {
            "task": data.name,
            "metrics": data.metrics,
            "primary": data.primary,
            "label_names": data.label_names,
        }

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TuneOptions,
        progress: Progress | None,
    ) -> Metrics:
        """The metrics of a loaded result by evaluation set."""
        return score_model(
            model,
            tokenizer,
            self.data,
            max_length=options.max_length,
            precision=options.precision,
            progress=progress,
        )


@dataclass(frozen=True)
class TextTask:
    """A causal language model on plain text, in blocks of ``max_length`` tokens; it has no task head."""

    data: TextData

    @staticmethod
    def items(row: Row) -> int:
        """Tokens that are predicted: all of a block but the first."""
        return len(row["labels"]) - 1

    def rows(self, tokenizer: PreTrainedTokenizerBase, options: TuneOptions) -> tuple[list[Row], list[Row]]:
        """Blocks to train on, and those at the end of the text as held-out ones."""
        for path in self.data.evaluations.values():
            text_size(path, tokenizer)  # a file that cannot be scored is found before an hour of training
        blocks = token_blocks(self.data.train, tokenizer, options.max_length)
        kept = len(blocks) - round(options.hold_out * len(blocks))
        if options.hold_out and not 0 < kept < len(blocks):
            raise DataError(
                f"{self.data.train}: holding out {options.hold_out} of {len(blocks)} blocks leaves one side empty; "
                "choose another part"
            )
        return blocks[:kept], blocks[kept:]

    def load(self, folder: Path, seed: int) -> PreTrainedModel:
        """The model in float32; nothing of it is fresh."""
        return load_causal_lm(folder, dtype=torch.float32)

    def teacher(self, folder: Path) -> PreTrainedModel:
        """A model of the same tokens."""
        return self.load(folder, 0)

    def fields(self) -> dict[str, Any]:
        """The fields of AdapterInfo that say what the adapter is for."""
        return {
            "task": self.data.name,
            "metrics": ("perplexity", "bits_per_byte", "word_perplexity"),
            "primary": "perplexity",
            "label_names": None,
            "task_type": CAUSAL_LM,
        }

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TuneOptions,
        progress: Progress | None,
    ) -> Metrics:
        """The perplexity of a loaded result by evaluation file, in windows of ``max_length``."""
        metrics = self.fields()["metrics"]
        scores: Metrics = {}
        for name, path in self.data.evaluations.items():
            found = score_text(
                model, tokenizer, path, window=options.max_length, precision=options.precision, progress=progress
            )
            scores[name] = {metric: getattr(found, metric) for metric in metrics}
        return scores


def task_of(data: TaskData | TextData) -> LabelTask | TextTask:
    """The task that data is for."""
    return TextTask(data) if isinstance(data, TextData) else LabelTask(data)
