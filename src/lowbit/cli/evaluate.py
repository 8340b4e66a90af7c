"""``lowbit evaluate``."""

from __future__ import annotations

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
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = None,
    json: options.Json = False,
) -> None:
    """Score a model on a GLUE task or on your own rows, whose labels are those that the model was made for."""
    columns = {"text": text, "text_pair": text_pair, "label": label}
    data = options.evaluation_data(model, adapter, task, data_dir, evaluation, columns, split)
    with progress("evaluate") as update:
        scores = lowbit.evaluate(
            model, data, adapter=adapter, batch_size=batch_size, max_length=max_length, progress=update
        )
    if json:
        print_json({"task": data.name, "primary": data.primary, "metrics": scores})
        return
    print_table([{"split": split, **metrics} for split, metrics in scores.items()])
