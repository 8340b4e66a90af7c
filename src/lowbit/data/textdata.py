"""Plain text to tune a language model on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TextData:
    """UTF-8 text files: one to train on, and named ones to evaluate on."""

    name: str
    train: Path
    evaluations: dict[str, Path] = field(default_factory=dict)


def text_data(train: str | Path, evaluation: str | Path | None = None) -> TextData:
    """A user's own text files; they are read when they are used."""
    evaluations = {} if evaluation is None else {"eval": Path(evaluation)}
    return TextData(Path(train).stem, Path(train), evaluations)
