"""``lowbit inspect``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.filesize import decimal

import lowbit
from lowbit.cli import options
from lowbit.cli.console import cell, print_json, print_table, progress
from lowbit.cli.layers import group_layers, layer_order, tree

Row = dict[str, Any]


def inspect(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Backbone, task adapter or merged directory.")],
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="Compare with: the float model, or another of its kind.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="DIR", help="Backbone of an adapter: show how far values moved.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="One row per module instead of equal layers together.")] = False,
    json: options.Json = False,
) -> None:
    """Show what is inside a directory, or how two differ: sizes, errors and outliers of each module."""
    with progress("inspect") as update:
        found = lowbit.inspect(directory, other, backbone=backbone, progress=update)
    if json:
        print_json(found)
        return
    show = {"adapter": _adapter, "adapters": _adapters, "backbones": _backbones}
    show.get(found["kind"], _backbone)(found, all_)


def _backbone(found: Row, all_: bool) -> None:
    _fields(found, ("modules", "outliers", "error", "file_bytes", "parameters"))
    print_table(_rows(found["modules"], all_, ("kind", "shape", "scheme"), _module))
    typer.echo("reach: largest outlier / largest other weight; column: where most outliers are")
    linears = sum(row["kind"] != "embedding" for row in found["modules"])
    typer.echo(f"{linears} linears and {len(found['modules']) - linears} embeddings, {found['outliers']:,} outliers")
    typer.echo(f"{decimal(found['file_bytes'])} for {found['parameters']:,} parameters")
    if found["error"] is None:
        typer.echo("error: not recorded; `lowbit inspect DIR FLOAT-MODEL` measures it")
    else:
        worst = max((row for row in found["modules"] if row["error"] is not None), key=lambda row: row["error"])
        typer.echo(f"error {cell(found['error'])} (block linears), largest {cell(worst['error'])}: {worst['name']}")


def _module(name: str, rows: list[Row]) -> Row:
    """One or several equal modules: outliers in all, the widest reach and largest error among them."""
    size = sum(row["shape"][0] * row["shape"][1] for row in rows)
    outliers = sum(row["outliers"] for row in rows)
    columns = [row["outlier_columns"][0] for row in rows if row["outlier_columns"]]
    busiest = max(columns, key=lambda column: column[1], default=None)
    return {
        "module": name,
        "shape": rows[0]["shape"],
        "scheme": rows[0]["scheme"],
        "bits": _mean(rows, "bits"),
        "step": f"{min(row['scale_min'] for row in rows):.2g}-{max(row['scale_max'] for row in rows):.2g}",
        "entropy": _mean(rows, "entropy"),
        "at ends": _percent(_mean(rows, "at_ends")),
        "outliers": _percent(outliers / size),
        "reach": _largest(rows, "outlier_reach"),
        "sigma": _largest(rows, "outlier_sigma"),
        "column": "" if busiest is None else f"{busiest[0]} ({busiest[1]})",
        "error": _largest(rows, "error"),
    }


def _backbones(found: Row, all_: bool) -> None:
    _sides(found, ("kind", "fingerprint", "effective_bits", "embedding_bits", "model_bits", "file_bytes"))
    print_table(_rows(found["modules"], all_, ("kind", "shape", "scheme"), _compared_module))
    for key in ("tensors_changed", "tensors_left", "tensors_right"):
        if found[key]:
            typer.echo(f"{key.replace('_', ' ')}: {cell(found[key])}")
    typer.echo("equal" if found["equal"] else f"difference {cell(found['difference'])} (block linears)")


def _compared_module(name: str, rows: list[Row]) -> Row:
    return {
        "module": name,
        "shape": rows[0]["shape"],
        **{f"scheme {side}": rows[0]["scheme"][i] or "float" for i, side in enumerate(("left", "right"))},
        "codes changed": _percent(_largest(rows, "codes_changed")),
        "difference": _largest(rows, "difference"),
    }


def _adapter(found: Row, all_: bool) -> None:
    _fields(found, ("tensors",))
    print_table(_rows(found["tensors"], all_, ("shape", "dtype"), _tensor))


def _tensor(name: str, rows: list[Row]) -> Row:
    return {"tensor": name, "dtype": rows[0]["dtype"], "shape": rows[0]["shape"], "moved": _largest(rows, "moved")}


def _adapters(found: Row, all_: bool) -> None:
    _sides(found, ("task", "label_names", "max_length", "trained", "scores", "fingerprint"))
    print_table(_rows(found["tensors"], all_, ("shape", "equal"), _compared_tensor))
    for key in ("tensors_left", "tensors_right"):
        if found[key]:
            typer.echo(f"{key.replace('_', ' ')}: {cell(found[key])}")
    changed = sum(not row["equal"] for row in found["tensors"])
    typer.echo("equal" if found["equal"] else f"{changed} of {len(found['tensors'])} common tensors differ")


def _compared_tensor(name: str, rows: list[Row]) -> Row:
    left, right = rows[0]["shape"]
    moved = [
        max((row["moved"][side] for row in rows if row["moved"][side] is not None), default=None) for side in (0, 1)
    ]
    return {
        "tensor": name,
        "shape": cell(left) if left == right else f"{cell(left)} | {cell(right)}",
        "equal": "yes" if rows[0]["equal"] else "no",
        "difference": _largest(rows, "difference"),
        "moved left": moved[0],
        "moved right": moved[1],
    }


def _rows(rows: list[Row], all_: bool, alike: tuple[str, ...], make: Any) -> list[Row]:
    """The table: a row per module or tensor, or one for those of consecutive layers with equal ``alike``."""
    ordered = layer_order(rows, _name)
    if all_:
        return [make(row["name"], [row]) for row in ordered]
    return tree(group_layers(ordered, _name, lambda row: str([row[key] for key in alike])), _name, make)


def _name(row: Row) -> str:
    return str(row["name"])


def _fields(found: Row, hidden: tuple[str, ...]) -> None:
    """One line per field."""
    for name, value in found.items():
        if name not in hidden and value is not None:
            typer.echo(f"{name.replace('_', ' ')}: {cell(value)}")


def _sides(found: Row, names: tuple[str, ...]) -> None:
    """The fields of both sides, side by side."""
    left, right = found["left"], found["right"]
    print_table(
        [
            {"": name.replace("_", " "), "left": cell(left.get(name)), "right": cell(right.get(name))}
            for name in ("path", *names)
        ]
    )
    typer.echo()


def _mean(rows: list[Row], key: str) -> float:
    return float(sum(row[key] for row in rows) / len(rows))


def _largest(rows: list[Row], key: str) -> float | None:
    return max((row[key] for row in rows if row[key] is not None), default=None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"
