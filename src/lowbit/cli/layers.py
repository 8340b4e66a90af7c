"""Tables of modules in which equal layers share a row."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def group_layers(items: Iterable[T], name: Callable[[T], str], alike: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of consecutive layers whose ``alike`` is equal, together; in the order of their first layers."""
    groups: list[list[T]] = []
    latest: dict[tuple[str, Hashable], list[T]] = {}
    for item in items:
        key = (_LAYER.sub("*", name(item), count=1), alike(item))
        if key in latest and _layer(name(item)) == _layer(name(latest[key][-1])) + 1:
            latest[key].append(item)
        else:
            latest[key] = [item]
            groups.append(latest[key])
    return groups


def layer_order(items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Items layer by layer, stack by stack, otherwise as they come."""
    stacks: dict[str, int] = {}

    def place(item: T) -> tuple[int, int]:
        match = _LAYER.search(name(item))
        return stacks.setdefault(name(item)[: match.start()] if match else "", len(stacks)), _layer(name(item))

    return sorted(items, key=place)


def split_name(names: Sequence[str]) -> tuple[str, str]:
    """Layers and name inside them, as in ``("encoder.layer.0-11", "output.dense")``; no layers are empty text."""
    match = _LAYER.search(names[0])
    if match is None:
        return "", names[0]
    last = f"-{_layer(names[-1])}" if len(names) > 1 else ""
    return names[0][: match.end()] + last, names[0][match.end() + 1 :]


def tree(
    groups: Iterable[list[T]], name: Callable[[T], str], row: Callable[[str, list[T]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row per group, under a line that names its layers once; ``row`` makes it of a name and the group."""
    rows: list[dict[str, Any]] = []
    above = ""
    for group in groups:
        layers, inside = split_name([name(item) for item in group])
        made = row(f"  {inside}" if layers else inside, group)
        if layers not in ("", above):
            rows.append({**dict.fromkeys(made), next(iter(made)): layers})
        rows.append(made)
        above = layers
    return rows


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[0]) if match else 0
