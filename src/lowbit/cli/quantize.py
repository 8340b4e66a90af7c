"""``lowbit quantize``."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, cast

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_json, print_notes, print_sizes, progress

if TYPE_CHECKING:
    from lowbit.quantize import Quantized


def quantize(
    model: options.Model,
    output: options.Output,
    scheme: options.SchemeText = None,
    recipe: options.RecipeFile = None,
    embeddings: options.Embeddings = None,
    strategy: options.Strategy = None,
    levels: options.Levels = None,
    target_bits: options.TargetBits = None,
    spread: options.Spread = None,
    calibration: options.CalibrationFile = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Stage 1: write a low-bit backbone, tensor by tensor, without data and without a GPU."""
    made = options.make_recipe(recipe, scheme, embeddings, strategy, levels, target_bits, spread)
    from lowbit.data import read_text

    texts = None if calibration is None else read_text(calibration).splitlines()
    run = lowbit.quantize  # may import torch, which is no part of the time
    started = time.perf_counter()
    with progress("quantize") as update:
        result = cast("Quantized", run(model, made, output=output, texts=texts, seed=seed, progress=update))
    seconds = time.perf_counter() - started
    before, size = result.plan.bytes_before, result.size
    if json:
        sizes = {"bytes_before": before, **dataclasses.asdict(size)}
        print_json({"path": str(result.path), **sizes, "seconds": round(seconds, 3), "notes": result.plan.notes})
        return
    print_sizes(before, size.file_bytes, size.effective_bits, size.model_bits)
    print_notes(result.plan.notes)
    typer.echo(f"{result.path} written in {seconds:.1f} s")
    typer.echo(f"next: lowbit tune {result.path} -o ADAPTER --task sst2")
