"""``lowbit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowbit.cli import options
from lowbit.cli.console import print_json, print_table, progress


def demo(
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder with the GLUE files, for real tasks.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Keep backbone and adapters here.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Both stages on a small model from start to end, on the processor."""
    from lowbit.demo import run_demo

    with progress("demo") as update:
        rows = run_demo(output, data_dir, update)
    if json:
        print_json(rows)
    else:
        print_table(rows)
