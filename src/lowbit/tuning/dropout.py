"""Dropout of a model while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# What transformers' layers call a probability that they hand to a function instead of keeping a module for it.
_PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout")


@contextmanager
def dropout_of(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Inside the block all dropout of ``model`` has this ``probability``; None leaves each layer its own."""
    found = [] if probability is None else [*_places(model)]
    own = [getattr(module, name) for module, name in found]
    for module, name in found:
        setattr(module, name, probability)
    try:
        yield
    finally:
        for (module, name), value in zip(found, own, strict=True):
            setattr(module, name, value)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules, and the attributes of theirs that hold a probability."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        else:
            yield from ((module, name) for name in _PROBABILITIES if isinstance(vars(module).get(name), float))
