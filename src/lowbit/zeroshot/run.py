"""``zeroshot``: a float model becomes a quantized one, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lowbit.arch import pack_model
from lowbit.calibration import Text
from lowbit.checkpoint import checkpoint_folder, refuse_existing
from lowbit.hf import LowbitConfig, attach, save
from lowbit.loop import Progress, SavedRun, default_device, isolated_rng, once
from lowbit.plan import Plan
from lowbit.quantize import fake_quantize_model, quantize_model
from lowbit.recipe import Recipe
from lowbit.scheme import Scheme
from lowbit.zeroshot.methods import Method, find_method, make_source
from lowbit.zeroshot.objective import BlockObjective, OutputObjective, Yardstick
from lowbit.zeroshot.options import ZeroShotOptions, ZeroShotResult, parse_recipe
from lowbit.zeroshot.sam import Ball
from lowbit.zeroshot.student import Teacher, block_paths, copy_of, load_teacher
from lowbit.zeroshot.texts import share_of_pairs
from lowbit.zeroshot.train import Trained, train


def zeroshot(
    model: str | Path,
    output: str | Path,
    recipe: str | Path | Mapping[str, Any] | Scheme | Recipe = "w4a8",
    *,
    method: str = "zsaq",
    texts: Sequence[Text] | None = None,
    options: ZeroShotOptions | None = None,
    progress: Progress | None = None,
) -> ZeroShotResult:
    """Quantize a fine-tuned, generative or bare model without data, and write it to a new directory.

    ``model``: folder or hub id of a float model, which is the teacher of its own quantized copy; the result has its
    class, head included. ``recipe`` as in ``quantize``, but a scheme's short form without ``o`` has no outliers.

    ``zsaq`` (arXiv 2310.13315): a generator makes batches on which the copy is far from its teacher, and the copy is
    trained to come near it, also where its weights are perturbed (SAM). ``no-sga``: the generator stays as it is.
    ``no-sam``: nothing is perturbed. The same training without either on other batches: ``random`` tokens,
    ``gaussian`` embeddings, text ``sampled`` from a language model, or ``real`` texts or pairs of texts, given as
    ``texts``. ``zeroquant``: layer-by-layer distillation on random tokens. ``rtn``: nothing is trained; any strategy.

    A run that was stopped leaves ``.NAME.checkpoint`` beside the output NAME once it has saved its state; the same call
    goes on from there and gives the same bytes. Under ``torchrun`` or ``accelerate launch`` the processes share each
    batch, and all of them get the result. The caller's random states stay as they are.

    An output that exists raises OutputExistsError, a model or generator that does not suit UnsupportedModelError, a
    run that diverges :class:`TrainingError`; nothing half written is left behind.
    """
    output, options, parsed = refuse_existing(output), options or ZeroShotOptions(), parse_recipe(recipe)
    chosen = find_method(method, options, texts)
    with isolated_rng(options.seed):
        teacher = load_teacher(checkpoint_folder(model))
        objective = OutputObjective(teacher.model, options.temperature, options.hidden)
        pairs = options.pairs if texts is None else share_of_pairs(texts)
        measure = Yardstick(teacher, objective, pairs, options.generator)
        student = copy_of(teacher)
        saved = SavedRun(output, {"method": method, **options.to_dict(), "recipe": parsed.to_dict()})
        if chosen.source is None:
            plan = quantize_model(student, parsed, pairs=pairs, seed=options.seed)
            gap = measure(_on_device(teacher, student))
            done = Trained(gap, gap, 0, {}, (), 0.0)
        else:
            plan = fake_quantize_model(student, parsed, pairs=pairs, seed=options.seed)
            done = _train(chosen, teacher, student, measure, options, texts, saved, progress)
            pack_model(student.cpu())
        once(lambda: _write(student.cpu(), plan, teacher.folder, output, saved))
    return ZeroShotResult(
        path=output,
        method=method,
        scheme=str(parsed.scheme),
        start_gap=done.start_gap,
        gap=done.gap,
        steps=done.steps,
        seconds=done.seconds,
        counts=done.counts,
        record=done.record,
    )


def _train(
    method: Method,
    teacher: Teacher,
    student: PreTrainedModel,
    measure: Yardstick,
    options: ZeroShotOptions,
    texts: Sequence[Text] | None,
    saved: SavedRun,
    progress: Progress | None,
) -> Trained:
    """Train the student by a method."""
    source = make_source(method, teacher, options, texts).to(default_device())
    objective: BlockObjective | OutputObjective = measure.objective
    if method.by_blocks:
        objective = BlockObjective(teacher.model, block_paths(student))
    return train(
        _on_device(teacher, student),
        source,
        objective,
        measure,
        options,
        ball=options.ball() if method.sharp else Ball(0.0),
        ascends=method.ascends,
        saved=saved,
        progress=progress,
    )


def _on_device(teacher: Teacher, student: PreTrainedModel) -> PreTrainedModel:
    """The student, on the device that there is, like its teacher."""
    teacher.model.to(default_device())
    student.to(default_device())
    return student


def _write(student: PreTrainedModel, plan: Plan, source: Path, output: Path, saved: SavedRun) -> None:
    attach(student, LowbitConfig.from_plan(plan))
    save(student, output, source=source)
    saved.remove()
