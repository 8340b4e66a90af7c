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
SIDE_FILES = (
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
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def checkpoint_folder(model: str | Path) -> Path:
    """The local folder of a model given as a folder or a hub id; neither raises CheckpointError.

    ``.bin`` files are fetched only where the hub has no safetensors.
    """
    kind, wanted = "a model", "a folder with config.json"
    folder = local_folder(model, kind, wanted, ["*.json", "*.safetensors", "README.md", *SIDE_FILES])
    if not any(folder.glob("*.safetensors")):
        folder = local_folder(model, kind, wanted, ["pytorch_model*.bin"])
    return folder


def local_folder(name: str | Path, kind: str, wanted: str, patterns: list[str]) -> Path:
    """The folder ``name``, or the cached copy of the repository ``name``, of whose files ``patterns`` are fetched.

    Neither raises CheckpointError; ``kind`` and ``wanted`` say there what was expected.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise CheckpointError(f"{name} is not {kind} folder; give {wanted}, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is neither a local folder nor {kind} on the hub that can be fetched: {error}"
        ) from error


def hub_id(folder: Path) -> str | None:
    """The name on the hub of a folder in its cache; None for any other folder."""
    repository = folder.absolute().parent.parent.name
    if folder.absolute().parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/")
