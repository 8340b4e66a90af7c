"""``lowbit zeroshot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import cell, print_json, progress


def zeroshot(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Fine-tuned, generative or bare float model: folder or hub id.")
    ],
    output: options.Output,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help=r"As in quantize, but without outliers unless it says so; default w4a8."),
    ] = None,
    recipe: options.RecipeFile = None,
    embeddings: options.Embeddings = None,
    strategy: options.Strategy = None,
    levels: options.Levels = None,
    method: Annotated[
        Literal["zsaq", "no-sga", "no-sam", "random", "gaussian", "sampled", "real", "zeroquant", "rtn"],
        typer.Option(
            "--method",
            help="zsaq, or without its adversary or its perturbation; on random tokens, Gaussian embeddings, sampled "
            "or real text; zeroquant: layer by layer; rtn: nothing is trained.",
        ),
    ] = "zsaq",
    generator: Annotated[
        str | None,
        typer.Option(
            "--generator",
            metavar="MODEL",
            help="Causal language model; default: a small network, sampled: MODEL itself.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", metavar="FILE", help="Texts for real, one a line; pairs are parted by a tab."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1)] = 300,
    batch_size: options.StepRows = 32,
    lengths: Annotated[tuple[int, int], typer.Option("--lengths", help="Fewest and most tokens of a row.")] = (4, 48),
    pairs: Annotated[float, typer.Option("--pairs", help="Share of rows that are pairs of texts, as in 0.5.")] = 0,
    candidates: Annotated[
        int, typer.Option("--candidates", min=1, help="Embedding rows that a generated token is mixed of.")
    ] = 16,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 1e-4,
    warmup: options.Warmup = 0.06,
    schedule: options.Schedule = "linear",
    temperature: Annotated[float, typer.Option("--temperature", help="Of the logits, in the loss.")] = 1,
    hidden: Annotated[float, typer.Option("--hidden", help="What the hidden states count in the loss.")] = 1,
    rho: Annotated[float, typer.Option("--rho", help="How far SAM perturbs the weights.")] = 0.001,
    relative: Annotated[bool, typer.Option("--relative", help="rho is in lengths of the weights.")] = False,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="rho is in units of each single weight (ASAM).")] = False,
    per_tensor: Annotated[bool, typer.Option("--per-tensor", help="rho is of each matrix by itself.")] = False,
    perturb: Annotated[
        Literal["weight", "latent"], typer.Option("--perturb", help="The quantized weight, or the latent one.")
    ] = "weight",
    generator_rate: Annotated[float, typer.Option("--generator-rate", help="Learning rate of the generator.")] = 1e-4,
    ratio: Annotated[int, typer.Option("--ratio", min=1, help="Steps of the student per step of the generator.")] = 5,
    diversity: Annotated[float, typer.Option("--diversity", help="What varied batches count for the generator.")] = 0.3,
    evaluate_steps: Annotated[
        int, typer.Option("--evaluate-steps", min=1, help="Steps after which the distance to the teacher is measured.")
    ] = 50,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="Stop after so many measurements without a smaller one.")
    ] = None,
    checkpointing: options.Checkpointing = False,
    precision: options.Precision = "auto",
    save_steps: options.SaveSteps = 100,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Quantize a model by training on batches that a generator makes for it: no data at all.

    A run that was stopped goes on where it last saved its state when the same command is given again.
    """
    from lowbit.loop import is_first
    from lowbit.zeroshot import short_form

    given = scheme if recipe is not None else short_form(scheme or "w4a8")
    made = options.make_recipe(recipe, given, embeddings, strategy, levels)
    chosen = lowbit.ZeroShotOptions(
        steps=steps,
        batch_size=batch_size,
        lengths=lengths,
        pairs=pairs,
        generator=generator,
        candidates=candidates,
        learning_rate=learning_rate,
        warmup=warmup,
        schedule=schedule,
        temperature=temperature,
        hidden=hidden,
        rho=rho,
        relative=relative,
        adaptive=adaptive,
        per_tensor=per_tensor,
        perturb=perturb,
        generator_rate=generator_rate,
        ratio=ratio,
        diversity=diversity,
        evaluate_steps=evaluate_steps,
        patience=patience,
        save_steps=save_steps,
        precision=precision,
        checkpointing=checkpointing,
        seed=seed,
    )
    with progress("zeroshot", shown=is_first()) as update:
        result = lowbit.zeroshot(
            model, output, made, method=method, texts=_rows(texts), options=chosen, progress=update
        )
    if not is_first():
        return
    if json:
        print_json(result.to_dict())
        return
    typer.echo(
        f"distance to the teacher on generated texts: {cell(result.start_gap)} quantized, "
        f"{cell(result.gap)} after {result.steps} steps of {method}"
    )
    skipped = sum(count for name, count in result.counts.items() if name.startswith("skipped"))
    if skipped:
        typer.echo(f"note: {skipped} steps were skipped, as their loss or gradient was not finite")
    if result.record and not result.steps:
        typer.echo("note: no step came nearer to the teacher, so nothing was changed; try a lower learning rate")
    typer.echo(f"{result.path} written in {result.seconds:.1f} s")
    typer.echo(f"next: lowbit inspect {result.path}")


def _rows(file: Path | None) -> list[str | tuple[str, str]] | None:
    """Lines of a file; one with a tab is a pair."""
    if file is None:
        return None
    from lowbit.data import read_text

    rows: list[str | tuple[str, str]] = []
    for line in read_text(file).splitlines():
        first, tab, second = line.partition("\t")
        rows.append((first, second) if tab else first)
    return rows
