"""``lowbit evaluate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import print_json, print_table, progress


def evaluate(
    model: options.Directory,
    adapter: options.Adapter = None,
    task: options.Task = None,
    data_dir: options.DataDir = None,
    split: options.Splits = None,
    evaluation: options.EvalFile = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    plain: Annotated[
        Path | None, typer.Option("--perplexity", metavar="FILE", help="Plain text, for a language model.")
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Tokens at once, for --perplexity; default: the model's.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens scored in each window; default: half of it.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Score so many tokens only; for masked models.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows (default: by their tokens) or windows (8) per batch."),
    ] = None,
    max_length: options.MaxLength = None,
    json: options.Json = False,
) -> None:
    """Score a model on a GLUE task, on your own rows, or a language model on plain text.

    The labels of your own rows are those that the model was made for.
    """
    columns = {"text": text, "text_pair": text_pair, "label": label}
    if plain is not None:
        rows: dict[str, Any] = {"--task": task, "--data-dir": data_dir, "--split": split or None, "--eval": evaluation}
        rows |= {**options.column_options(columns), "--max-length": max_length}
        options.forbid(rows, "is for rows with labels; leave it or --perplexity out")
        _on_text(
            json,
            model=model,
            text=plain,
            adapter=adapter,
            window=window,
            stride=stride,
            batch_size=batch_size or 8,
            sample=sample,
            seed=seed,
        )
        return
    options.forbid({"--window": window, "--stride": stride, "--sample": sample}, "is for --perplexity")
    data = options.evaluation_data(model, adapter, task, data_dir, evaluation, columns, split)
    with progress("evaluate") as update:
        scores = lowbit.evaluate(
            model, data, adapter=adapter, batch_size=batch_size, max_length=max_length, progress=update
        )
    if json:
        print_json({"task": data.name, "primary": data.primary, "metrics": scores})
        return
    print_table([{"split": split, **metrics} for split, metrics in scores.items()])


def _on_text(json: bool, **settings: Any) -> None:
    """Print the perplexity; ``settings`` are the arguments of :func:`lowbit.perplexity`."""
    with progress("evaluate") as update:
        found = dataclasses.asdict(lowbit.perplexity(**settings, progress=update))
    if json:
        print_json(found)
        return
    print_table([found])
