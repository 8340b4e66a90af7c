"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowbit.errors import AdapterError
from lowbit.recipe import Recipe, embedding_scheme
from lowbit.scheme import Scheme

if TYPE_CHECKING:
    from lowbit.data import TaskData, TextData

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or hub id.")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="Backbone, merged or float model: folder or hub id.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="New directory to write.")]
Adapter = Annotated[
    str | None, typer.Option("--adapter", metavar="DIR", help="Task adapter to put on the backbone: folder or hub id.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows per batch.")]
RowsAtOnce = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Rows per batch; default: as many as have 1,024 tokens.")
]
StepRows = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of one step, over all processes.")]
Warmup = Annotated[float, typer.Option("--warmup", help="Part of the steps in which the rates rise.")]
Schedule = Annotated[
    Literal["linear", "cosine", "constant"], typer.Option("--schedule", help="How the rates fall afterwards.")
]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Compute activations twice: slower, less memory.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option("--precision", help="auto: bf16 where the hardware has it.")
]
SaveSteps = Annotated[
    int, typer.Option("--save-steps", min=0, help="Steps after which the state is saved, to go on from.")
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Tokens per row; default: as the adapter was trained.")
]

SchemeText = Annotated[
    str | None,
    typer.Option("--scheme", help=r"w<bits>\[a8|a8s]\[g<group>|t]\[o<percent>], as in w4, w3g64 or w2o1; default w4."),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="YAML or JSON recipe, instead of the options for one.")
]
Embeddings = Annotated[
    Literal["8", "4", "float"] | None, typer.Option("--embeddings", help="Bits of the word embeddings; default 8.")
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy", help="How grids are found: mse, minmax, sigma, percentile, lsq, hqq, gptq or kmeans; default mse."
    ),
]
Levels = Annotated[
    Literal["full", "midrise", "codebook", "shared-codebook"] | None,
    typer.Option("--levels", help="Grid of the symmetric schemes; the codebooks are for kmeans and gptq."),
]
TargetBits = Annotated[
    float | None,
    typer.Option(
        "--target-bits",
        help="Effective bits to meet, as 3.2: each matrix gets the width that suits it; runs the model.",
    ),
]
Spread = Annotated[
    Literal["matrix", "model"] | None,
    typer.Option("--spread", help="Whether the share of outliers is of each matrix or of the whole model."),
]

CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="FILE", help="Texts for gptq and a8s, one a line; default: generated ones."),
]

Task = Annotated[str | None, typer.Option("--task", help="GLUE task, as in sst2.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder with the GLUE files; default $LOWBIT_DATA.")
]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Evaluation set of the task, repeatable; default: all it has.")
]
EvalFile = Annotated[
    Path | None, typer.Option("--eval", metavar="FILE", help="Your evaluation rows: .csv, .tsv or .jsonl.")
]
TextColumn = Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Column of the text.")]
PairColumn = Annotated[str | None, typer.Option("--text-pair", metavar="COLUMN", help="Column of a second text.")]
LabelColumn = Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="Column of the label.")]


def make_recipe(
    recipe: Path | None,
    scheme: str | None = None,
    embeddings: str | None = None,
    strategy: str | None = None,
    levels: str | None = None,
    target_bits: float | None = None,
    spread: str | None = None,
) -> Recipe:
    """The recipe file, or a recipe of the single options; both together are a usage error."""
    single: dict[str, Any] = {
        "--scheme": scheme,
        "--embeddings": embeddings,
        "--strategy": strategy,
        "--levels": levels,
    }
    single |= {"--target-bits": target_bits, "--spread": spread}
    if recipe is not None:
        forbid(single, "goes into the recipe file when --recipe is given")
        if recipe.suffix not in (".yaml", ".yml", ".json"):
            raise typer.BadParameter(f"a recipe file ends in .yaml, .yml or .json, not {recipe.name}")
        return Recipe.parse(recipe)
    made = Scheme.parse(scheme or "w4")
    made = dataclasses.replace(made, strategy=strategy or made.strategy, levels=levels or "")
    if spread is not None:
        if made.outliers is None:
            raise typer.BadParameter("--spread needs a scheme with outliers")
        made = dataclasses.replace(made, outliers=dataclasses.replace(made.outliers, spread=spread))
    return Recipe(scheme=made, embeddings=embedding_scheme(embeddings or 8), target_bits=target_bits)


def training_data(
    task: str | None,
    data_dir: Path | None,
    files: tuple[Path | None, Path | None],
    columns: Mapping[str, str | None],
    *,
    regression: bool,
    train_rows: int | None,
    seed: int,
    splits: list[str] | None = None,
) -> TaskData:
    """A GLUE task, or the user's (training, evaluation) files; ``columns`` names text, text_pair and label."""
    train, evaluation = files
    _check_source(task, data_dir, {"--train": train, "--eval": evaluation}, columns)
    from lowbit.data import glue_data, table_data

    if task is not None:
        forbid({"--regression": regression or None}, "is for your own files")
        return glue_data(task, data_dir, train_rows=train_rows, splits=splits, seed=seed)
    forbid({"--split": splits or None}, "is for --task")
    data = table_data(train, evaluation, regression=regression, **_known(columns))
    if train_rows is None:
        return data
    return dataclasses.replace(data, train=data.training_rows().sample(train_rows, seed))


def training_text(
    train: Path | None, evaluation: Path | None, rows: Mapping[str, Any], columns: Mapping[str, str | None]
) -> TextData | None:
    """Plain text files, if given; ``rows`` and ``columns`` are the options for rows with labels."""
    if train is None:
        forbid({"--eval-text": evaluation}, "needs --train-text")
        return None
    forbid({**rows, **column_options(columns)}, "is for rows with labels; leave it or --train-text out")
    from lowbit.data import text_data

    return text_data(train, evaluation)


def use_of(model: str, *, is_text: bool) -> str:
    """The command that uses a tuned model, given as its arguments."""
    return f"lowbit evaluate {model} --perplexity FILE" if is_text else f'lowbit predict {model} "some text"'


def evaluation_data(
    model: str,
    adapter: str | None,
    task: str | None,
    data_dir: Path | None,
    evaluation: Path | None,
    columns: Mapping[str, str | None],
    splits: list[str] | None = None,
) -> TaskData:
    """A GLUE task, or the user's file with the labels that the adapter or else the model was made for."""
    _check_source(task, data_dir, {"--eval": evaluation}, columns)
    from lowbit.data import glue_data, table_data

    if task is not None:
        return glue_data(task, data_dir, train=False, splits=splits)
    forbid({"--split": splits or None}, "is for --task")
    names = _label_names(model, adapter)
    return table_data(None, evaluation, regression=names is None, label_names=names, **_known(columns))


def forbid(options: Mapping[str, Any], why: str) -> None:
    """A usage error for the first of ``options`` that was given."""
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"{name} {why}")


def _check_source(
    task: str | None, data_dir: Path | None, files: Mapping[str, Path | None], columns: Mapping[str, str | None]
) -> None:
    named = column_options(columns)
    if task is not None:
        forbid({**files, **named}, "is for your own files; leave it or --task out")
        return
    forbid({"--data-dir": data_dir}, "is for --task")
    needed = {**files, "--text": named["--text"], "--label": named["--label"]}
    if None in needed.values():
        raise typer.BadParameter(f"give --task, or your own files with {', '.join(needed)}")


def column_options(columns: Mapping[str, str | None]) -> dict[str, str | None]:
    """Columns by the option that names them."""
    return {f"--{column.replace('_', '-')}": value for column, value in columns.items()}


def _known(columns: Mapping[str, str | None]) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if column is not None}


def _label_names(model: str, adapter: str | None) -> tuple[str, ...] | None:
    """Class names in the order of the outputs; None for regression."""
    from lowbit.adapter import read_info
    from lowbit.checkpoint import checkpoint_folder, read_config

    if adapter is not None:
        info = read_info(adapter)
        if info.is_language_model:
            raise AdapterError(f"{adapter} is for a language model; measure it with --perplexity")
        return info.label_names
    config = read_config(checkpoint_folder(model))
    if config.num_labels == 1:
        return None
    return tuple(config.id2label[index] for index in range(config.num_labels))
