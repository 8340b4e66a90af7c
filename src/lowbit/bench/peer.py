"""What a peer is, and what the runtime families share: a model as one function from a batch to hidden states."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

Batch = dict[str, torch.Tensor]  # input_ids and attention_mask, int64 [rows, tokens]
Run = Callable[[Batch], torch.Tensor]  # the last hidden states, float [rows, tokens, width]


@dataclass(frozen=True)
class Setting:
    """What every peer of a run is given.

    ``calibration`` are batches for those that need activation ranges, ``texts`` the text they were made of, where there
    is any; ``varied`` says that batches have many different lengths, so that nothing should be compiled for one.
    """

    threads: int
    calibration: tuple[Batch, ...]
    texts: tuple[str, ...] | None = None
    varied: bool = False


@dataclass(frozen=True)
class Peer:
    """A runtime and what it does to a model; it is sent to a process of its own, so its functions are picklable.

    ``quantize(source, folder, setting)`` writes what a user would keep into the empty ``folder``; None where the float
    model itself is what is run. ``load(folder, setting)`` reads it. ``packages`` are the modules that are needed, the
    first of which gives the version; ``lacks`` finds what else is missing, as a reason or None.
    """

    name: str
    packages: tuple[str, ...]
    load: Callable[[Path, Setting], Run]
    quantize: Callable[[Path, Path, Setting], None] | None = None
    lacks: Callable[[], str | None] | None = None

    @property
    def family(self) -> str:
        """The runtime: what stands before the first hyphen of the name."""
        return self.name.split("-")[0]

    def missing(self) -> str | None:
        """Why this peer cannot run here; None where it can."""
        absent = [package for package in self.packages if importlib.util.find_spec(package.split(".")[0]) is None]
        if absent:
            return f"{' and '.join(absent)} not installed"
        return self.lacks() if self.lacks else None

    @property
    def version(self) -> str | None:
        """Version of the distribution that is named as the first package; None where there is none."""
        try:
            return importlib.metadata.version(self.packages[0].replace(".", "-")).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            return None


class LastHidden(torch.nn.Module):
    """A transformer without its head, called with ids and mask, giving one tensor: what all peers are handed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states, [rows, tokens, width]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self._options).last_hidden_state


def read_model(folder: Path, dtype: torch.dtype = torch.float32) -> LastHidden:
    """The model in ``folder``, float or backbone, in eval mode."""
    return LastHidden(AutoModel.from_pretrained(folder, dtype=dtype)).eval()


def as_run(model: torch.nn.Module) -> Run:
    """A torch module as a function of a batch."""

    def run(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            return model(**batch)

    return run


def no_compiler() -> str | None:
    """The reason where torch.compile finds no C++ compiler."""
    found = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    return None if found else "torch.compile needs a C++ compiler"
