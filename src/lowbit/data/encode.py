"""Texts to token ids."""

from typing import TYPE_CHECKING, Any

from lowbit.data.examples import Examples
from lowbit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int = 128) -> list[dict[str, Any]]:
    """One dict a row: the tokenizer's fields as lists of at most ``max_length``, and ``labels`` if any.

    Padding is left to the collator, so that each batch is only as long as its longest row. A text without tokens, as
    GPT-2 makes of an empty one, becomes the end token. Raises :class:`DataError` where there are no rows.
    """
    if not len(examples):
        raise DataError(f"{examples.source}: no rows to encode; give at least one")
    encoded = tokenizer(examples.texts, examples.pairs, truncation=True, max_length=max_length, padding=False)
    rows = [{name: field[row] for name, field in encoded.items()} for row in range(len(examples))]
    for row in rows:
        if not row["input_ids"] and tokenizer.eos_token_id is not None:
            row.update(input_ids=[tokenizer.eos_token_id], attention_mask=[1])
    if examples.labels is not None:
        for row, label in zip(rows, examples.labels, strict=True):
            row["labels"] = label
    return rows
