"""Which weights of the quantized linears a task trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from lowbit.calibration import evaluating
from lowbit.nn import QuantLinear
from lowbit.outliers import largest

Positions = dict[str, torch.Tensor]


@torch.no_grad()
def choose_positions(
    linears: Mapping[str, QuantLinear],
    rule: str,
    counts: Mapping[str, int],
    seed: int,
    gradients: Mapping[str, torch.Tensor],
) -> Positions:
    """Flat int64 positions, ascending, by module, ``counts`` of them each; rules as in ``TuneOptions.positions``.

    The rules ``gradient`` and ``mix`` need ``gradients``, the absolute dense weight gradients [out, in]; ``random``
    uses the seed. ``backbone`` gives no more positions than the module has outliers.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for path, module in linears.items():
        count = counts[path]
        if rule == "random":
            found = torch.randperm(module.shape[0] * module.shape[1], generator=generator)[:count].sort().values
        elif rule == "gradient":
            found = largest(gradients[path].flatten(), count)
        elif rule == "mix":
            found = _furthest(module, count // 2)
            rest = gradients[path].flatten().index_fill(0, found, -1)
            found = torch.cat([found, largest(rest, count - found.numel())]).sort().values
        else:
            found = _furthest(module, count)
        chosen[path] = found.to(module.codes.device)
    return chosen


def _furthest(module: QuantLinear, count: int) -> torch.Tensor:
    """Positions of the module's outliers that lie furthest from what their codes stand for."""
    positions, tensor = module.tensor.outlier_positions(), module.tensor
    if count >= positions.numel():
        return positions
    assert tensor.outlier_value is not None
    distance = (tensor.outlier_value.float() - tensor.dequantize_dense().view(-1)[positions]).abs()
    return positions[largest(distance, count)]


def dense_gradients(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """``|dL/dW|`` float32 [out, in] of every quantized linear, for one batch in eval mode; nothing is changed.

    The parameters' own gradients are left as they were.
    """
    found: dict[str, torch.Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].detach().flatten(0, -2).float()

            def collect(grad: torch.Tensor) -> None:
                dense = grad.detach().flatten(0, -2).float().t() @ x
                found[path] = found[path] + dense if path in found else dense

            output.register_hook(collect)

        return hook

    linears = {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}
    handles = [module.register_forward_hook(watch(path)) for path, module in linears.items()]
    try:
        with evaluating(model):
            loss = model(**{name: value.to(model.device) for name, value in batch.items()}).loss
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return {path: gradient.abs_() for path, gradient in found.items()}
