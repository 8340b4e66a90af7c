"""The eight GLUE tasks with labelled evaluation data, from the official files or from the Hugging Face hub.

Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding".
"""

import os
from dataclasses import dataclass
from pathlib import Path

from lowbit.data.examples import Examples
from lowbit.data.labels import to_class, to_score
from lowbit.data.rows import Row, tsv_rows
from lowbit.errors import DataError, MissingExtraError

HUB_ID = "nyu-mll/glue"
MAX_SCORE = 5.0  # STS-B similarity
# Microsoft's own file, which GLUE splits into train.tsv and dev.tsv: it holds the rows of both.
MSR_TRAIN = "msr_paraphrase_train.txt"


@dataclass(frozen=True)
class Task:
    """One task: its columns in the official files and on the hub, its classes, and how it is scored.

    ``labels`` are the class names in the hub's order and ``stored`` the same classes as the files spell them,
    both ``None`` for regression; ``header`` is for files that have none; ``primary`` is the metric that
    models are selected by.
    """

    name: str
    folder: str
    text: str
    text_pair: str | None
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)
    primary: str = "accuracy"
    eval_splits: tuple[str, ...] = ("dev",)
    stored: tuple[str, ...] | None = ("0", "1")
    header: tuple[str, ...] | None = None
    hub_text: str = "sentence1"
    hub_pair: str | None = "sentence2"


_BINARY_F1 = ("accuracy", "f1")
_NLI = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")

_TASKS = (
    Task(
        "cola",
        "CoLA",
        "sentence",
        None,
        "label",
        ("unacceptable", "acceptable"),
        metrics=("matthews",),
        primary="matthews",
        header=("source", "label", "original_label", "sentence"),
        hub_text="sentence",
        hub_pair=None,
    ),
    Task(
        "sst2",
        "SST-2",
        "sentence",
        None,
        "label",
        ("negative", "positive"),
        hub_text="sentence",
        hub_pair=None,
    ),
    Task(
        "mrpc",
        "MRPC",
        "#1 String",
        "#2 String",
        "Quality",
        ("not_equivalent", "equivalent"),
        metrics=_BINARY_F1,
    ),
    Task(
        "stsb",
        "STS-B",
        "sentence1",
        "sentence2",
        "score",
        None,
        metrics=("pearson", "spearman"),
        primary="spearman",
        stored=None,
    ),
    Task(
        "qqp",
        "QQP",
        "question1",
        "question2",
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        metrics=_BINARY_F1,
        hub_text="question1",
        hub_pair="question2",
    ),
    Task(
        "mnli",
        "MNLI",
        "sentence1",
        "sentence2",
        "gold_label",
        _MNLI,
        eval_splits=("dev_matched", "dev_mismatched"),
        stored=_MNLI,
        hub_text="premise",
        hub_pair="hypothesis",
    ),
    Task(
        "qnli",
        "QNLI",
        "question",
        "sentence",
        "label",
        _NLI,
        stored=_NLI,
        hub_text="question",
        hub_pair="sentence",
    ),
    Task("rte", "RTE", "sentence1", "sentence2", "label", _NLI, stored=_NLI),
)
GLUE: dict[str, Task] = {task.name: task for task in _TASKS}


def get_task(name: str) -> Task:
    """The task of that name; case, dashes and underscores do not matter ("SST-2" is "sst2")."""
    key = name.lower().replace("-", "").replace("_", "")
    if key not in GLUE:
        raise DataError(f"unknown GLUE task {name!r}; use one of {', '.join(GLUE)}")
    return GLUE[key]


def load_glue(task: str | Task, split: str, data_dir: str | Path | None = None) -> Examples:
    """A ``train`` or ``dev`` split; MNLI has ``dev_matched`` (its ``dev``) and ``dev_mismatched``.

    Reads the official files in ``data_dir/<folder>`` or ``data_dir/glue/<folder>``, where ``data_dir``
    defaults to the environment variable ``LOWBIT_DATA``. Where neither is given, the hub (extra ``data``) is
    asked instead; a folder that is given is never replaced by the hub. MRPC without a ``train.tsv`` takes
    Microsoft's file and leaves the rows of ``dev.tsv`` out. Raises :class:`DataError` naming file and line.
    """
    task = get_task(task) if isinstance(task, str) else task
    if split == "dev":
        split = task.eval_splits[0]
    if split not in ("train", *task.eval_splits):
        known = ", ".join(("train", "dev", *task.eval_splits))
        raise DataError(f"{task.name}: no split {split!r} with labels; use one of {known}")
    root = data_dir or os.environ.get("LOWBIT_DATA")
    if not root:
        return _from_hub(task, split)
    path = _find_file(task, split, Path(root))
    examples = _from_file(task, path)
    if path.name == MSR_TRAIN:
        return _without(examples, load_glue(task, "dev", root))
    return examples


def _find_file(task: Task, split: str, root: Path) -> Path:
    names = [f"{split}.tsv"]
    if (task.name, split) == ("mrpc", "train"):
        names.append(MSR_TRAIN)
    paths = [folder / name for folder in (root / task.folder, root / "glue" / task.folder) for name in names]
    for path in paths:
        if path.is_file():
            return path
    tried = ", ".join(map(str, paths))
    raise DataError(f"{task.name}: no {split} file; tried {tried}; put it there, or choose the splits you have")


def _from_file(task: Task, path: Path) -> Examples:
    columns = [column for column in (task.text, task.text_pair, task.label) if column is not None]
    rows = list(tsv_rows(path, columns, task.header))
    if not rows:
        raise DataError(f"{path}: no row after the header; download the file again")
    return Examples(
        texts=[values[0] for _, values in rows],
        pairs=None if task.text_pair is None else [values[1] for _, values in rows],
        labels=_stored_labels(task, rows),
        label_names=task.labels,
        source=str(path),
    )


def _stored_labels(task: Task, rows: list[Row]) -> list[int] | list[float]:
    if task.stored is None:
        return [to_score(values[-1], where, 0.0, MAX_SCORE) for where, values in rows]
    return [to_class(values[-1], task.stored, where) for where, values in rows]


def _without(examples: Examples, held_out: Examples) -> Examples:
    out = set(zip(held_out.texts, held_out.pairs or [], strict=True))
    rows = enumerate(zip(examples.texts, examples.pairs or [], strict=True))
    return examples.select(index for index, pair in rows if pair not in out)


def _from_hub(task: Task, split: str) -> Examples:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "GLUE from the hub needs the datasets library: pip install 'lowbit[data]', "
            "or set LOWBIT_DATA to a folder with the official files"
        ) from error
    source = f"{HUB_ID}/{task.name}/{split}"
    try:
        data = datasets.load_dataset(HUB_ID, task.name, split=split.replace("dev", "validation"))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: the hub did not give it ({error}); go online, "
            "or set LOWBIT_DATA to a folder with the official files"
        ) from error
    names = getattr(data.features["label"], "names", None)
    if names != (task.labels and list(task.labels)):
        raise DataError(f"{source}: the hub's labels are {names}, not {task.labels}; use the official files")
    return Examples(
        texts=list(data[task.hub_text]),
        pairs=None if task.hub_pair is None else list(data[task.hub_pair]),
        labels=list(data["label"]),
        label_names=task.labels,
        source=source,
    )
