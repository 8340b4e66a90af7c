"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.errors import CheckpointError, OutputExistsError

WEIGHTS_FILE = "model.safetensors"

# What describes the vocabulary and generation, copied unchanged from the source checkpoint.
_SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def refuse_existing(output: str | Path) -> Path:
    """``output`` as a path; raises :class:`OutputExistsError` when something is there already."""
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise OutputExistsError(f"{path} exists already; choose another output or remove it first")
    return path


@contextmanager
def atomic_directory(output: str | Path) -> Iterator[Path]:
    """Give a hidden sibling to write into and rename it to ``output`` at the end.

    An exception or Ctrl-C removes it; a killed process leaves only the hidden name, which never looks like a
    complete directory. An output that exists raises :class:`OutputExistsError`.
    """
    final = refuse_existing(output)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        refuse_existing(final)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def weight_files(folder: Path) -> list[Path]:
    """The file with the weights of a directory, or its shards where there is no single file."""
    single = folder / WEIGHTS_FILE
    return [single] if single.is_file() else sorted(folder.glob("model-*-of-*.safetensors")) or [single]


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the tokenizer and generation settings that ``source`` has."""
    for name in _SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def checkpoint_folder(model: str | Path) -> Path:
    """The local folder of a model given as a folder or a hub id; neither raises CheckpointError."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise CheckpointError(f"{model} is not a model folder; give a folder with config.json, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors", *_SIDE_FILES]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(str(model), allow_patterns=["pytorch_model*.bin"]))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model} is neither a local folder nor a hub model that can be fetched: {error}"
        ) from error
