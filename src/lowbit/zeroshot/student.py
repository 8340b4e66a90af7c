"""Teacher and student: one float model, and its quantized copy."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lowbit.adapter import load
from lowbit.calibration import blocks
from lowbit.checkpoint import load_tokenizer
from lowbit.errors import AdapterError
from lowbit.hf import is_quantized
from lowbit.nn import FakeQuantLinear
from lowbit.zeroshot.batches import GeneratedBatch
from lowbit.zeroshot.embedding import mixed_embeddings
from lowbit.zeroshot.sam import Target


@dataclass(frozen=True)
class Teacher:
    """A float model of any task class, frozen and in eval mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path


def load_teacher(folder: Path) -> Teacher:
    """The model of a folder in the class that its ``config.json`` names, in float32.

    One that is quantized already raises :class:`AdapterError`.
    """
    tokenizer = load_tokenizer(folder)
    model = load(folder)
    if is_quantized(model):
        raise AdapterError(f"{folder} is quantized already; give the float model")
    if model.config.pad_token_id is None:  # decoders classify at the last token that is no padding
        model.config.pad_token_id = tokenizer.pad_token_id
    return Teacher(model.float().requires_grad_(False), tokenizer, folder)


def copy_of(teacher: Teacher) -> PreTrainedModel:
    """A copy to be quantized, whose parameters can be trained."""
    return copy.deepcopy(teacher.model).requires_grad_(True)


def fake_linears(student: PreTrainedModel) -> dict[str, FakeQuantLinear]:
    """The fake quantizers by path, in model order."""
    return {path: module for path, module in student.named_modules() if isinstance(module, FakeQuantLinear)}


def block_paths(student: PreTrainedModel) -> list[str]:
    """Paths of the transformer blocks that hold fake quantizers; of one outside any block its own."""
    found = []
    for paths in blocks(fake_linears(student)):
        parts = paths[0].split(".")
        ends = [index for index, part in enumerate(parts) if part.isdigit()]
        found.append(".".join(parts[: ends[0] + 1]) if ends else paths[0])
    return list(dict.fromkeys(found))


def parameter_groups(student: PreTrainedModel, rate: float) -> list[dict[str, Any]]:
    """AdamW's groups: everything but the tables of words, and for each module its step sizes.

    Word embeddings and the projection onto the vocabulary are left as they are: they are shared, or large.
    """
    tables = [student.get_input_embeddings(), student.get_output_embeddings()]
    frozen = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    fakes = fake_linears(student).values()
    steps = [group for module in fakes for group in module.step_groups(rate)]
    apart = frozen | {id(step) for group in steps for step in group["params"]}
    for parameter in student.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    rest = [parameter for parameter in student.parameters() if id(parameter) not in apart]
    return [{"params": rest, "lr": rate}, *steps]


def targets(student: PreTrainedModel, perturb: str) -> list[Target]:
    """What SAM perturbs: each fake quantizer's quantized ``weight``, which gets an offset, or its ``latent`` one."""
    found = []
    for module in fake_linears(student).values():
        if perturb == "latent":
            found.append(Target(module.latent))
        else:
            module.offset = torch.zeros_like(module.latent)
            found.append(Target(module.offset, functools.partial(_weight_of, module)))
    return found


def forward(model: PreTrainedModel, batch: GeneratedBatch) -> Any:
    """Outputs for a batch with all hidden states, and without a cache of keys and values."""
    inputs: dict[str, Any] = dict(batch.inputs)
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    if batch.mixture is None:
        return model(**inputs, output_hidden_states=True)
    with mixed_embeddings(model, batch.mixture):
        return model(**inputs, output_hidden_states=True)


@contextmanager
def checkpointed(model: PreTrainedModel, paths: Sequence[str]) -> Iterator[None]:
    """Inside the block the modules at ``paths`` are computed again in the backward pass.

    Transformers' own switch works in training mode only, with dropout.
    """
    modules: list[nn.Module] = [model.get_submodule(path) for path in paths]
    for module in modules:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _weight_of(module: FakeQuantLinear) -> torch.Tensor:
    return module.weight
