"""Saving a loaded backbone with the same writer that the streaming path uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.arch import untie
from lowbit.checkpoint import TensorEntry, atomic_directory, write_description, write_weights
from lowbit.errors import CheckpointError
from lowbit.hf.config import LowbitConfig
from lowbit.hf.quantizer import disk_tensors
from lowbit.plan import make_plan, with_schemes


def save(model: PreTrainedModel, output: str | Path, source: Path | None = None) -> Path:
    """Write a quantized model as a new backbone directory, whole or not at all.

    Tokenizer and generation settings are copied from ``source``, by default the folder the model was loaded from.
    A model that is not quantized raises CheckpointError, an existing output OutputExistsError.
    """
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, LowbitConfig):
        raise CheckpointError("the model is not quantized by lowbit; quantize it first, or use save_pretrained")
    if source is None and model.name_or_path and Path(model.name_or_path).is_dir():
        source = Path(model.name_or_path)
    plain = type(model.config).from_dict({**model.config.to_dict(), "quantization_config": None})
    with torch.device("meta"):
        skeleton = type(model)(plain)
    tensors = disk_tensors(model)
    untie(skeleton, tensors)
    plan = make_plan(skeleton.to(model.dtype), config.parsed_recipe(), strict=False)
    schemes = {name: spec.scheme for name, spec in config.modules().items()}
    plan = replace(with_schemes(plan, schemes, config.reasons), errors=config.errors)
    entries = {name: TensorEntry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with atomic_directory(output) as partial:
        write_weights(partial, entries, tensors.items())
        write_description(partial, plan, plain, source)
    return Path(output)
