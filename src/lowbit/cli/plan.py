"""``lowbit plan``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_json, print_notes, print_sizes, print_table, progress
from lowbit.cli.layers import group_layers, tree

if TYPE_CHECKING:
    from lowbit.plan import PlanEntry


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
    groups = tree(grouped(result.entries), _name, _row)
    print_table([_row(entry.name, [entry]) for entry in result.entries] if all_ else groups)
    print_sizes(result.bytes_before, result.bytes_after, result.effective_bits, result.model_bits)
    print_notes(result.notes)


def grouped(entries: tuple[PlanEntry, ...]) -> list[list[PlanEntry]]:
    """Entries of consecutive layers that differ in nothing else, together."""
    return group_layers(
        entries, _name, lambda entry: (str(entry.scheme), dataclasses.replace(entry, name="", scheme=None))
    )


def _name(entry: PlanEntry) -> str:
    return entry.name


def _row(name: str, group: list[PlanEntry]) -> dict[str, Any]:
    entry = group[0]
    done = entry.kind if entry.scheme is None else f"{entry.kind} {entry.scheme}"
    return {
        "module": name or "(model)",
        "shape": entry.shape,
        "what is done": f"{done}: {entry.reason}" if entry.reason else done,
        "before": decimal(sum(e.bytes_before for e in group)),
        "after": decimal(sum(e.bytes_after for e in group)),
    }
