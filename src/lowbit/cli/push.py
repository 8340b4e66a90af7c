"""``lowbit push``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_json


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Backbone, task adapter or merged directory.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Its name on the hub: me/backbone.")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="REPO", help="Hub id of an adapter's backbone, for its card.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; default: as the hub has it.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another model that the repository holds.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Publish a directory on the Hugging Face hub, after every byte was verified; log in first with `hf auth login`."""
    pushed = lowbit.push(directory, repository, backbone=backbone, private=private, replace=replace)
    if json:
        print_json(dataclasses.asdict(pushed))
        return
    uploaded = (
        f"uploaded: {', '.join(pushed.files)}" if pushed.files else "nothing uploaded: the same files are there already"
    )
    typer.echo(uploaded)
    typer.echo(pushed.url)
