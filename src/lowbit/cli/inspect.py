"""``lowbit inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import cell, print_json, print_table


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Backbone, task adapter or merged directory.")],
    json: options.Json = False,
) -> None:
    """Show what is inside a directory: sizes and modules of a backbone, task and scores of an adapter."""
    found = lowbit.inspect(directory)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print_table(value, title=name)
        elif value is not None:
            typer.echo(f"{name.replace('_', ' ')}: {cell(value)}")
