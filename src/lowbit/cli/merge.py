"""``lowbit merge``."""

from __future__ import annotations

from typing import Annotated

import typer

import lowbit
from lowbit.adapter import read_info
from lowbit.cli import options
from lowbit.cli.console import print_json


def merge(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="Backbone: folder or hub id.")],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Task adapter trained on it: folder or hub id.")],
    output: options.Output,
    json: options.Json = False,
) -> None:
    """Write one deployable directory out of a backbone and a task adapter; no weight is rounded again."""
    path = lowbit.merge(backbone, adapter, output)
    if json:
        print_json({"path": str(path)})
        return
    typer.echo(f"{path} written")
    typer.echo(f"next: {options.use_of(str(path), is_text=read_info(adapter).is_language_model)}")
