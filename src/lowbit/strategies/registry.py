"""Strategies by name. A strategy is a pure function; adding one is one file and one ``@strategy``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lowbit.errors import SchemeError

Parameters = tuple[torch.Tensor, torch.Tensor | None]
Strategy = Callable[..., Parameters]

_STRATEGIES: dict[str, Strategy] = {}
_POSITIONAL = 3  # blocks, scheme, keep; what follows are the strategy's own options


def strategy(function: Strategy) -> Strategy:
    """Register ``function(blocks, scheme, keep, **options) -> (scale, zero_point)`` under its own name.

    ``blocks`` float32 [groups, rows, columns] with outliers set to zero; ``keep`` bool of the same shape,
    False at outliers, or None when there are none; returns float32 scale [groups] and uint8 zero point
    [groups] (None for symmetric schemes). Options are the keyword parameters of the function.
    """
    _STRATEGIES[function.__name__] = function
    return function


def get_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy ``name``; an unknown name or option raises :class:`SchemeError`."""
    if name not in _STRATEGIES:
        raise SchemeError(f"unknown strategy {name!r}; use one of {', '.join(sorted(_STRATEGIES))}")
    function = _STRATEGIES[name]
    known = list(inspect.signature(function).parameters)[_POSITIONAL:]
    for key in options:
        if key not in known:
            known_text = ", ".join(known) or "none"
            raise SchemeError(f"strategy {name!r} has no option {key!r}; its options: {known_text}")
    return function
