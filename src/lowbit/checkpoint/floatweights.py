"""The float weights that a backbone was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lowbit.arch import find_module, float_weight, weight_shape
from lowbit.checkpoint.source import SourceCheckpoint, meta_model, open_source, read_config
from lowbit.errors import CheckpointError


class FloatWeights:
    """The weights of a float checkpoint under the relative names of a backbone of it."""

    def __init__(self, model: PreTrainedModel, source: SourceCheckpoint) -> None:
        self._model, self._source = model, source

    def weight(self, name: str) -> torch.Tensor:
        """The float weight [out, in] of one module."""
        path = find_module(self._model, name)
        assert path is not None
        return float_weight(self._model.get_submodule(path), self._source.tensor(f"{path}.weight"))


@contextmanager
def open_float_weights(folder: Path, backbone: Path, shapes: Mapping[str, tuple[int, int]]) -> Iterator[FloatWeights]:
    """Open the float model in ``folder`` that ``backbone`` was made of.

    One without a module of each of the ``shapes`` [out, in], given by relative name, raises CheckpointError.
    """
    model = meta_model(read_config(folder))
    with open_source(folder, model) as source:
        for name, shape in shapes.items():
            path = find_module(model, name)
            if path is None or weight_shape(model.get_submodule(path)) != shape:
                raise CheckpointError(
                    f"{folder} has no module {name!r} of shape {list(shape)}; "
                    f"give the float model that {backbone} was made from"
                )
        yield FloatWeights(model, source)
