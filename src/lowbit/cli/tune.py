"""``lowbit tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import lowbit
from lowbit.cli import options
from lowbit.cli.console import cell, print_json, print_table, progress


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Backbone, or float model (full, ptq, qat).")],
    output: options.Output,
    task: options.Task = None,
    data_dir: options.DataDir = None,
    split: options.Splits = None,
    train: Annotated[
        Path | None, typer.Option("--train", metavar="FILE", help="Your training rows: .csv, .tsv or .jsonl.")
    ] = None,
    evaluation: options.EvalFile = None,
    train_text: Annotated[
        Path | None, typer.Option("--train-text", metavar="FILE", help="Plain text, to tune a language model on.")
    ] = None,
    eval_text: Annotated[
        Path | None, typer.Option("--eval-text", metavar="FILE", help="Plain text, to measure its perplexity on.")
    ] = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    regression: Annotated[bool, typer.Option("--regression", help="Labels are numbers.")] = False,
    method: Annotated[
        Literal["outliers", "random", "scales", "bitfit", "lora", "loftq", "full", "ptq", "qat"],
        typer.Option(
            "--method",
            help="Of a backbone: outliers, or random positions, step sizes, biases, low-rank factors; of a float "
            "model: full, ptq (full, then quantized), qat (quantized while it is trained).",
        ),
    ] = "outliers",
    scheme: options.SchemeText = None,
    epochs: Annotated[float, typer.Option("--epochs")] = 3,
    batch_size: options.StepRows = 32,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Parts in which a process works through its rows.")
    ] = 1,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Default: the method's own.")] = None,
    head_learning_rate: Annotated[
        float | None, typer.Option("--head-learning-rate", help="Default: the method's own.")
    ] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=1, help="Tokens per row or block.")] = 128,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", min=1, help="Train on so many rows, drawn with the seed.")
    ] = None,
    norms: Annotated[bool, typer.Option("--norms/--no-norms", help="Train the norms too.")] = True,
    biases: Annotated[bool, typer.Option("--biases/--no-biases", help="Train the biases too.")] = True,
    scales: Annotated[
        bool | None, typer.Option("--scales/--no-scales", help="Train the step sizes too. Default: up to 4 bits.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Train at most this share of the block weights, as 0.5%; the head is not counted."
        ),
    ] = None,
    positions: Annotated[
        Literal["backbone", "random", "gradient", "mix"],
        typer.Option("--positions", help="Weights to train: the backbone's outliers, or others."),
    ] = "backbone",
    initial: Annotated[
        Literal["stored", "decoded"], typer.Option("--initial", help="Start values as stored, or from the grid.")
    ] = "stored",
    rate_by_step: Annotated[
        bool, typer.Option("--rate-by-step", help="Let the rate of each matrix go by its step sizes.")
    ] = False,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of lora and loftq without a budget.")] = 8,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="DIR", help="Fine-tuned float model to learn from, too.")
    ] = None,
    float_model: Annotated[
        Path | None, typer.Option("--float-model", metavar="DIR", help="What the backbone was made of, for loftq.")
    ] = None,
    warmup: options.Warmup = 0.06,
    schedule: options.Schedule = "linear",
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", help="Default: 0 for a backbone, for a float model what its config says."),
    ] = None,
    cache: Annotated[
        Literal["none", "bf16", "fp32"],
        typer.Option("--cache", help="Keep decoded weights in the precision of the run: faster, more memory."),
    ] = "none",
    checkpointing: options.Checkpointing = False,
    precision: options.Precision = "auto",
    hold_out: Annotated[
        float,
        typer.Option("--hold-out", help="Part of the training rows, as in 0.1, that decides which epoch is kept."),
    ] = 0,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="Stop after so many epochs without a lower held-out loss.")
    ] = None,
    save_steps: options.SaveSteps = 500,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Stage 2: fine-tune the outliers and the head for one task, or a baseline; the score is that of the result.

    The task is one of GLUE, your own rows with labels, or a causal language model on plain text.

    A run that was stopped goes on where it last saved its state when the same command is given again.
    """
    from lowbit.tuning import METHODS, is_first

    if method not in ("ptq", "qat"):
        options.forbid({"--scheme": scheme}, "is for --method ptq and qat; a backbone has its scheme already")
    columns = {"text": text, "text_pair": text_pair, "label": label}
    rows: dict[str, Any] = {
        "--task": task,
        "--data-dir": data_dir,
        "--split": split or None,
        "--train": train,
        "--eval": evaluation,
        "--regression": regression or None,
        "--train-rows": train_rows,
    }
    data = options.training_text(train_text, eval_text, rows, columns) or options.training_data(
        task,
        data_dir,
        (train, evaluation),
        columns,
        splits=split,
        regression=regression,
        train_rows=train_rows,
        seed=seed,
    )
    chosen = lowbit.TuneOptions(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        max_length=max_length,
        norms=norms,
        biases=biases,
        scales=scales,
        budget=_share(budget),
        positions=positions,
        initial=initial,
        rate_by_step=rate_by_step,
        rank=rank,
        teacher=teacher,
        float_model=float_model,
        warmup=warmup,
        schedule=schedule,
        dropout=dropout,
        cache=cache,
        checkpointing=checkpointing,
        precision=precision,
        seed=seed,
        save_steps=save_steps,
        hold_out=hold_out,
        patience=patience,
        recipe=options.make_recipe(None, scheme),
    )
    with progress("tune", shown=is_first()) as update:
        result = lowbit.tune(model, output, data, method=method, options=chosen, progress=update)
    if not is_first():
        return
    if json:
        print_json(result.to_dict())
        return
    print_table([{"split": split, **metrics} for split, metrics in result.metrics.items()])
    typer.echo(
        f"trained: {cell(result.trained)}; without the head {100 * result.trained_share:.2f} % of the block weights"
    )
    typer.echo(f"{result.path} written in {result.seconds:.1f} s, {result.rows} training rows, {result.steps} steps")
    use = f"{model} --adapter {result.path}" if METHODS[method].from_backbone else f"{result.path}"
    typer.echo(f"next: {options.use_of(use, is_text=train_text is not None)}")


def _share(budget: str | None) -> float | None:
    """A share given as a number or in percent."""
    if budget is None:
        return None
    number, percent = budget.removesuffix("%"), budget.endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError as error:
        raise typer.BadParameter(f"--budget is a share, as 0.5% or 0.005, not {budget!r}") from error
