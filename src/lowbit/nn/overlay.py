"""More outliers for a quantized module: those that a task adds to the ones of the backbone."""

from __future__ import annotations

import torch

from lowbit.errors import AdapterError
from lowbit.nn.payload import QuantModule
from lowbit.qtensor import flat_positions, sparse_rows

SPARSE = ("outlier_ptr", "outlier_col", "outlier_value")


def widen(module: QuantModule, positions: torch.Tensor) -> None:
    """Make the flat int64 ``positions`` outliers, too; a new one has the value that its code stands for.

    A module whose scheme keeps no outliers raises :class:`AdapterError`.
    """
    if module.outlier_value is None:
        raise AdapterError("the backbone keeps no outliers, so none can be added; quantize it with some, as in w4")
    union = torch.cat([module.tensor.outlier_positions(), positions]).unique()
    for name, value in sparse_rows(module.weight, union).items():
        setattr(module, name, value)


def overlay(module: QuantModule, ptr: torch.Tensor, col: torch.Tensor, value: torch.Tensor) -> None:
    """Put values at positions of compressed sparse rows, as ``outlier_*`` of a module; its others stay."""
    positions = flat_positions(ptr, col, module.shape).to(module.codes.device)
    widen(module, positions)
    assert module.outlier_value is not None
    places = torch.searchsorted(module.tensor.outlier_positions(), positions)
    module.outlier_value[places] = value.to(module.outlier_value)


def rows_of(module: QuantModule, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights at flat int64 ``positions``, as :func:`overlay` takes them."""
    return sparse_rows(module.weight, positions)
