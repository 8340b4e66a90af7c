"""The tokenizer that belongs to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lowbit.errors import CheckpointError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; one without a padding token pads with its end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} has no usable tokenizer: {error!r}; fetch its files again") from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / name).is_file() for name in files):  # transformers makes one that knows no word
        raise CheckpointError(
            f"{folder} has no tokenizer, none of {', '.join(sorted(files))}; save it beside the model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer in {folder} has neither a padding nor an end token; add one")
    return tokenizer
