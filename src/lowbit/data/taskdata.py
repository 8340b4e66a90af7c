"""One task's data, wherever it comes from: what ``tune`` and ``evaluate`` work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.data.examples import Examples
from lowbit.data.glue import get_task, load_glue
from lowbit.data.intents import load_intents
from lowbit.data.table import load_table
from lowbit.errors import DataError


@dataclass(frozen=True)
class TaskData:
    """Training rows and named evaluation sets of one task.

    ``metrics`` are computed on every evaluation set and ``primary`` is the one that counts; ``label_names`` is None
    for regression. A set without labels, or with other label names, raises :class:`DataError`.
    """

    name: str
    metrics: tuple[str, ...]
    primary: str
    label_names: tuple[str, ...] | None
    train: Examples | None = None
    evaluations: dict[str, Examples] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for examples in (self.train, *self.evaluations.values()):
            if examples is None:
                continue
            if examples.labels is None:
                raise DataError(f"{examples.source}: no labels; name the label column")
            if examples.label_names != self.label_names:
                raise DataError(
                    f"{examples.source}: the labels are {examples.label_names}, those of task {self.name!r} "
                    f"{self.label_names}; read all files with the same label names"
                )

    @property
    def outputs(self) -> int:
        """Number of outputs that a head for this task needs."""
        return 1 if self.label_names is None else len(self.label_names)

    def training_rows(self) -> Examples:
        """The training rows; a task without any raises :class:`DataError`."""
        if self.train is None or not len(self.train):
            raise DataError(f"task {self.name!r} has no training rows; give a training file")
        return self.train


def glue_data(
    task: str,
    data_dir: str | Path | None = None,
    *,
    train: bool = True,
    train_rows: int | None = None,
    splits: Sequence[str] | None = None,
    seed: int = 0,
) -> TaskData:
    """A GLUE task; ``train_rows`` takes the first rows of a permutation drawn with ``seed``.

    ``splits`` are the evaluation sets, by default all of the task's: ``dev``, for MNLI ``dev_matched`` and
    ``dev_mismatched``. One that is missing raises :class:`DataError`.
    """
    found = get_task(task)
    rows = load_glue(found, "train", data_dir) if train else None
    if rows is not None and train_rows is not None:
        rows = rows.sample(train_rows, seed)
    evaluations = {split: load_glue(found, split, data_dir) for split in splits or found.eval_splits}
    return TaskData(found.name, found.metrics, found.primary, found.labels, rows, evaluations)


def table_data(
    train: str | Path | None = None,
    evaluation: str | Path | None = None,
    *,
    text: str,
    label: str,
    text_pair: str | None = None,
    regression: bool = False,
    label_names: tuple[str, ...] | None = None,
) -> TaskData:
    """A user's own files. The label set is ``label_names``, else that of the training file, else the evaluation's."""
    if train is None and evaluation is None:
        raise DataError("give a training file, an evaluation file, or both")
    sets = {}
    for name, path in (("train", train), ("eval", evaluation)):
        if path is not None:
            rows = load_table(
                path, text=text, text_pair=text_pair, label=label, label_names=label_names, regression=regression
            )
            label_names = rows.label_names
            sets[name] = rows
    first = train if train is not None else evaluation
    metrics = ("pearson", "spearman") if regression else ("accuracy",)
    evaluations = {"eval": sets["eval"]} if "eval" in sets else {}
    return TaskData(Path(str(first)).stem, metrics, metrics[-1], label_names, sets.get("train"), evaluations)


def intent_data(train_rows: int | None = None, seed: int = 0) -> TaskData:
    """The twelve-intent data set that comes with the package."""
    train, test = load_intents("train"), load_intents("test")
    if train_rows is not None:
        train = train.sample(train_rows, seed)
    return TaskData("intents", ("accuracy",), "accuracy", train.label_names, train, {"test": test})
