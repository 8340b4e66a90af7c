"""Small RoBERTa and T5 models, trained on the spot, for a small version of the table of benchmarks/tuning_quality.py.

No trained checkpoint of these architectures is at hand. So a small one is trained to tell the sentiment of SST-2 rows
that the study does not use, and saved without its head: a stand-in for pre-training that says nothing of real models of
these architectures, but lets every method run on them with real text. The tokenizer is that of another small model.

    LOWBIT_DATA=/path/to/data python benchmarks/small_models.py --tokenizer /path/to/opt-mini --output build/small
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)
from tuning_quality import task_data

import lowbit
from lowbit.data import TaskData, glue_data
from lowbit.loop import isolated_rng

ROWS, EPOCHS, RATE = 30_000, 2, 1e-3
WIDTH, LAYERS, HEADS = 192, 3, 6


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, help="folder with a byte-level tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="folder for the models")
    parser.add_argument("--data-dir", help="folder with the GLUE tasks; default LOWBIT_DATA")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    data = other_rows(arguments.data_dir)
    for name in ("roberta", "t5"):
        folder = arguments.output / name
        if not folder.exists():
            train(name, tokenizer, data, folder)


def other_rows(data_dir: str | None) -> TaskData:
    """Rows of SST-2 that the study does not train on."""
    used = set(task_data("sst2", data_dir).training_rows().texts)
    data = glue_data("sst2", data_dir)
    rows = data.training_rows()
    free = [index for index, text in enumerate(rows.texts) if text not in used]
    picked = dataclasses.replace(
        rows, texts=[rows.texts[i] for i in free], labels=[rows.labels[i] for i in free]
    ).sample(ROWS, 0)
    return dataclasses.replace(data, train=picked)


def train(name: str, tokenizer: PreTrainedTokenizerBase, data: TaskData, folder: Path) -> None:
    """Train one model from random values, and save it without its head."""
    start = folder.with_name(f"{name}-random")
    tuned = folder.with_name(f"{name}-sst2")
    with isolated_rng(0):
        model = untrained(name, tokenizer)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    options = lowbit.TuneOptions(epochs=EPOCHS, learning_rate=RATE, save_steps=0)
    result = lowbit.tune(start, tuned, data, method="full", options=options)
    print(f"{name}: accuracy {result.score:.3f} on dev before the head is taken off", flush=True)
    trained = lowbit.load(tuned)
    body = trained.transformer if name == "t5" else trained.base_model
    body.config.lowbit_task = None
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def untrained(name: str, tokenizer: PreTrainedTokenizerBase) -> torch.nn.Module:
    """A classifier with random values; the tokenizer is made to end each text as the architecture needs it."""
    end = tokenizer.eos_token
    single = f"{end} $A {end}" if name == "roberta" else f"$A {end}"
    pair = f"{end} $A {end} $B {end}" if name == "roberta" else f"$A $B {end}"
    ends = [(end, tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": 2}
    if name == "roberta":
        return RobertaForSequenceClassification(
            RobertaConfig(
                hidden_size=WIDTH,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                intermediate_size=4 * WIDTH,
                max_position_embeddings=160,
                type_vocab_size=1,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **shared,
            )
        )
    return T5ForSequenceClassification(
        T5Config(
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=4 * WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            decoder_start_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **shared,
        )
    )


if __name__ == "__main__":
    main()
