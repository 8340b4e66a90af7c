"""``lowbit verify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_error, print_json
from lowbit.errors import LowbitError


def verify(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR", help="Backbones, adapters, merged models.")],
    json: options.Json = False,
) -> None:
    """Compare every byte with its checksum; all directories are looked at, and exit code 2 says that one failed."""
    results: list[dict[str, Any]] = []
    for directory in directories:
        try:
            found = lowbit.verify(directory)
        except LowbitError as error:
            print_error(error)
            results.append({"path": str(directory), "ok": False, "error": str(error)})
            continue
        results.append({**dataclasses.asdict(found), "path": str(directory), "ok": True})
        if not json:
            counts = f"{found.tensors} tensors, {found.quantized_modules} quantized modules, {decimal(found.bytes)}"
            typer.echo(f"{directory}: whole; {counts}; fingerprint {found.fingerprint[:12]}")
    if json:
        print_json(results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)
