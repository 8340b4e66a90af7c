"""``lowbit plan``."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_json, print_sizes, print_table, progress

if TYPE_CHECKING:
    from lowbit.plan import PlanEntry

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def plan(
    model: options.Model,
    scheme: options.SchemeText = None,
    recipe: options.RecipeFile = None,
    embeddings: options.Embeddings = None,
    target_bits: options.TargetBits = None,
    spread: options.Spread = None,
    all_: Annotated[bool, typer.Option("--all", help="One row per module instead of equal layers together.")] = False,
    json: options.Json = False,
) -> None:
    """Show what would be done to each module and why, and the size before and after. Nothing is written."""
    made = options.make_recipe(recipe, scheme, embeddings, target_bits=target_bits, spread=spread)
    with progress("plan") as update:
        result = lowbit.plan(model, made, progress=update)
    if json:
        print_json(result.to_dict())
        return
    print_table([_row(entry.name, [entry]) for entry in result.entries] if all_ else _tree(grouped(result.entries)))
    print_sizes(result.bytes_before, result.bytes_after, result.effective_bits, result.model_bits)


def grouped(entries: tuple[PlanEntry, ...]) -> list[list[PlanEntry]]:
    """Entries of consecutive layers that differ in nothing else, together; in the order of their first layers."""
    groups: list[list[PlanEntry]] = []
    latest: dict[tuple[str, PlanEntry], list[PlanEntry]] = {}
    for entry in entries:
        rest = dataclasses.replace(entry, name=_LAYER.sub("*", entry.name, count=1), scheme=None)
        key = (str(entry.scheme), rest)
        if key in latest and _layer(entry) == _layer(latest[key][-1]) + 1:
            latest[key].append(entry)
        else:
            latest[key] = [entry]
            groups.append(latest[key])
    return groups


def split_name(group: list[PlanEntry]) -> tuple[str, str]:
    """Layers and name inside them, as in ``("encoder.layer.0-11", "output.dense")``; no layers are empty text."""
    name = group[0].name
    match = _LAYER.search(name)
    if match is None:
        return "", name
    last = f"-{_layer(group[-1])}" if len(group) > 1 else ""
    return name[: match.end()] + last, name[match.end() + 1 :]


def _layer(entry: PlanEntry) -> int:
    match = _LAYER.search(entry.name)
    return int(match[0]) if match else 0


def _tree(groups: list[list[PlanEntry]]) -> list[dict[str, Any]]:
    """One row per group, under a line that names its layers once."""
    rows: list[dict[str, Any]] = []
    above = ""
    for group in groups:
        layers, name = split_name(group)
        row = _row(f"  {name}" if layers else name, group)
        if layers not in ("", above):
            rows.append({**dict.fromkeys(row), "module": layers})
        rows.append(row)
        above = layers
    return rows


def _row(name: str, group: list[PlanEntry]) -> dict[str, Any]:
    entry = group[0]
    done = entry.kind if entry.scheme is None else f"{entry.kind} {entry.scheme}"
    return {
        "module": name,
        "shape": entry.shape,
        "what is done": f"{done}: {entry.reason}" if entry.reason else done,
        "before": decimal(sum(e.bytes_before for e in group)),
        "after": decimal(sum(e.bytes_after for e in group)),
    }
