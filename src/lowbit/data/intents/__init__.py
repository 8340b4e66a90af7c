"""A small intent classification set inside the package: 12 intents, 45 train and 15 test rows of each.

Written by hand for this project, under its licence, so that every example and test runs without a download.
Some intents are close on purpose (alarm, timer, reminder, calendar; directions, traffic; transfer_money,
check_balance; translate, define_word). It is a smoke test of a pipeline: 180 rows are no benchmark.
"""

from dataclasses import replace
from importlib.resources import as_file, files

from lowbit.data.examples import Examples
from lowbit.data.table import load_table
from lowbit.errors import DataError


def load_intents(split: str) -> Examples:
    """The ``train`` (540 rows) or ``test`` (180 rows) split; label names are in alphabetical order."""
    if split not in ("train", "test"):
        raise DataError(f"intents: no split {split!r}; use train or test")
    with as_file(files(__name__) / f"{split}.csv") as path:
        examples = load_table(path, text="text", label="intent")
    return replace(examples, source=f"intents/{split}")
