"""What the layers of a model see on calibration inputs, and the 8-bit grid that suits it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.calibration import Batch, evaluating
from lowbit.errors import DataError, WeightError
from lowbit.qtensor import QuantizedTensor
from lowbit.runtime.openvino.weights import fold_columns

LEVELS = 256
_ROWS = 256  # input rows kept of a layer, over all batches
_ROWS_OF_A_CALL = 32
_MARGIN = 1.1  # what other inputs may exceed the ranges by: to be cut off costs more than a coarser step
_RATIOS = (1, 2, 3, 4, 6, 8)  # how much the largest channels may be divided


class Seen:
    """Smallest and largest value of each input channel over all calls of a module, and some of its input rows."""

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.rows: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Take the inputs [..., in] of one call in; where ``mask`` bool [batch, length] fits, padding is left out."""
        rows = (inputs[mask] if inputs.shape[:2] == mask.shape else inputs.flatten(0, -2)).float()
        if not rows.isfinite().all():
            raise WeightError("its inputs are NaN or infinite; repair the checkpoint first")
        self.low, self.high = torch.minimum(self.low, rows.amin(0)), torch.maximum(self.high, rows.amax(0))
        self.rows.append(rows[:: max(1, rows.shape[0] // _ROWS_OF_A_CALL)])

    def sample(self) -> torch.Tensor:
        """At most 256 rows [rows, in], evenly taken from all calls."""
        rows = torch.cat(self.rows)
        return rows[:: -(-rows.shape[0] // _ROWS)]


@dataclass(frozen=True)
class Grid:
    """256 levels from ``low`` to ``high``, zero among them; before, channels are divided by ``divisors`` [in]."""

    low: float
    high: float
    divisors: torch.Tensor

    @classmethod
    def of(cls, low: torch.Tensor, high: torch.Tensor, divisors: torch.Tensor) -> Grid:
        """The grid that holds channels from ``low`` [in], at most 0, to ``high`` [in], at least 0."""
        smallest, largest = float((low / divisors).min()), float((high / divisors).max())
        step = (largest - smallest) / (LEVELS - 1) or 1.0
        zero = round(-smallest / step)
        return cls(-zero * step, (LEVELS - 1 - zero) * step, divisors)

    def round(self, inputs: torch.Tensor) -> torch.Tensor:
        """``inputs`` [..., in], divided, on the grid."""
        step = (self.high - self.low) / (LEVELS - 1)
        return ((inputs / self.divisors).clamp(self.low, self.high) / step).round_().mul_(step)


@torch.no_grad()
def observe(model: PreTrainedModel, paths: Iterable[str], batches: Sequence[Batch]) -> dict[str, Seen]:
    """What the modules at ``paths`` see while the model runs on ``batches``; one never called raises DataError."""
    seen = {path: Seen() for path in paths}
    mask = torch.empty(0)

    def hook(path: str):  # type: ignore[no-untyped-def]
        def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            try:
                seen[path].add(inputs[0], mask)
            except WeightError as error:
                raise WeightError(f"{path}: {error}") from error

        return note

    hooks = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in seen]
    try:
        with evaluating(model):
            for batch in batches:
                mask = batch["attention_mask"].bool()
                model(**batch)
    finally:
        for handle in hooks:
            handle.remove()
    for path, found in seen.items():
        if not found.rows:
            raise DataError(f"{path}: no calibration input reaches it; give at least one text")
    return seen


@dataclass(frozen=True)
class Folded:
    """A weight: ``codes`` int8 [out, in] times ``scale`` float32 [out, 1]; ``shift`` [out] is added to the outputs."""

    codes: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


@torch.no_grad()
def choose_grid(
    tensors: dict[str, QuantizedTensor], seen: dict[str, Seen], *, spare: bool
) -> tuple[Grid, dict[str, Folded]]:
    """The grid for the one input that the layers ``tensors`` share, and their folded weights.

    Channels larger than the others by far would leave these few levels, so they are divided by whole numbers, and
    columns of the weight multiplied (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, which divides by any number):
    whole numbers keep the stored codes exact. How far this goes is chosen by the error of the outputs on the rows
    that ``seen`` kept; a shift of the outputs takes their mean error back. ``spare`` is that of ``fold_columns``.
    """
    low = _MARGIN * torch.stack([seen[path].low for path in tensors]).amin(0)
    high = _MARGIN * torch.stack([seen[path].high for path in tensors]).amax(0)
    rows = seen[next(iter(tensors))].sample()
    exact = {path: rows @ tensor.dequantize().t() for path, tensor in tensors.items()}
    largest = torch.maximum(-low, high)
    best: tuple[float, Grid, dict[str, Folded]] | None = None
    for ratio in _RATIOS:
        divisors = torch.ceil(largest * ratio / largest.max().clamp_min(1e-30)).clamp_min(1)
        grid = Grid.of(low, high, divisors)
        rounded = grid.round(rows)
        error, folded = 0.0, {}
        for path, tensor in tensors.items():
            codes, scale = fold_columns(tensor, divisors, spare=spare)
            missing = exact[path] - rounded @ (codes * scale).t()
            shift = missing.mean(0)
            error += float((missing - shift).square().sum())
            folded[path] = Folded(codes, scale, shift)
        if best is None or error < best[0]:
            best = error, grid, folded
    assert best is not None
    return best[1], best[2]
