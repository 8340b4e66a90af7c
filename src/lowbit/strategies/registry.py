"""Strategies by name. A strategy is a pure function; adding one is one file and one ``@strategy``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from lowbit.errors import SchemeError
from lowbit.scheme import Scheme
from lowbit.strategies.grid import Fit

Strategy = Callable[..., Fit]

HESSIAN = "hessian"
_POSITIONAL = 3  # blocks, scheme, keep; what follows are the strategy's own options
_STRATEGIES: dict[str, tuple[Strategy, tuple[str, ...]]] = {}


def strategy(*levels: str) -> Callable[[Strategy], Strategy]:
    """Register ``function(blocks, scheme, keep, **options) -> Fit`` under its own name, for these ``levels``.

    ``blocks`` float32 [groups, rows, columns] with outliers set to zero; ``keep`` bool of the same shape,
    False at outliers, or None when there are none. Options are the keyword parameters of the function; one called
    ``hessian`` is no option: it gets the second moments of the layer's inputs, float32 [in, in].
    """

    def register(function: Strategy) -> Strategy:
        _STRATEGIES[function.__name__] = (function, levels)
        return function

    return register


def strategy_names() -> tuple[str, ...]:
    """Names of all registered strategies, in alphabetical order."""
    return tuple(sorted(_STRATEGIES))


def get_strategy(scheme: Scheme) -> Strategy:
    """The strategy of a scheme; a name, option or levels that it does not know raise :class:`SchemeError`."""
    name = scheme.strategy
    if name not in _STRATEGIES:
        raise SchemeError(f"unknown strategy {name!r}; use one of {', '.join(strategy_names())}")
    function, levels = _STRATEGIES[name]
    if scheme.levels not in levels:
        raise SchemeError(f"strategy {name!r} has no levels {scheme.levels!r}; use {' or '.join(levels)}")
    known = [option for option in _parameters(function) if option != HESSIAN]
    for key in scheme.options:
        if key not in known:
            known_text = ", ".join(known) or "none"
            raise SchemeError(f"strategy {name!r} has no option {key!r}; its options: {known_text}")
    return function


def needs_hessian(scheme: Scheme) -> bool:
    """Whether the scheme's strategy asks for the second moments of the layer's inputs."""
    return HESSIAN in _parameters(get_strategy(scheme))


def grid_scheme(scheme: Scheme) -> Scheme:
    """The scheme with a strategy that finds its grid from the weight alone, in place of one that needs a Hessian."""
    if not needs_hessian(scheme):
        return scheme
    return replace(scheme, strategy="mse" if scheme.codebook_shared is None else "kmeans", options={})


def _parameters(function: Strategy) -> list[str]:
    return list(inspect.signature(function).parameters)[_POSITIONAL:]
