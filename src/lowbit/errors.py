"""Typed errors. Every one names the layer, file or row that is wrong and says the fix.

All derive from :class:`LowbitError`; the command line prints the message and exits with code 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class LowbitError(Exception):
    """Base class of every error that a caller can mend."""


class SchemeError(LowbitError, ValueError):
    """A scheme or recipe asks for something that does not exist or does not fit the tensor."""


class UnsupportedModelError(LowbitError):
    """The model type, or something inside the model, is not supported."""


class WeightError(LowbitError, ValueError):
    """A weight cannot be quantized: NaN, infinite, or outside the range of the stored dtype."""


class CheckpointError(LowbitError):
    """A checkpoint is missing, truncated, altered or does not match its manifest."""


class AdapterError(LowbitError):
    """A task adapter does not fit the backbone or the call."""


class OutputExistsError(LowbitError, FileExistsError):
    """The output directory, or another model in the hub's repository, exists already; nothing was written."""


class HubError(LowbitError):
    """The hub cannot be reached, or refuses what was asked; the message says what it needs."""


class DataError(LowbitError, ValueError):
    """A data file or row cannot be used; the message names file and line."""


class TrainingError(LowbitError):
    """Training has diverged; the message says at which step, with which value, and what to lower."""


class BenchError(LowbitError, ValueError):
    """A benchmark is asked for peers, shapes or texts that do not exist."""


class MissingExtraError(LowbitError, ImportError):
    """An optional dependency is needed; the message says what to install."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a module or tensor before what a :class:`LowbitError` raised inside the block says."""
    try:
        yield
    except LowbitError as error:
        raise type(error)(f"{name}: {error}") from error
