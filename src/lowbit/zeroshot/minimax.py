"""SAM-SGA: one player minimises a loss and its sharpness, the other one maximises the loss by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from lowbit.errors import SchemeError
from lowbit.loop import isolated_rng
from lowbit.zeroshot.sam import Ball, Target, norm, perturbations, perturbed, requiring_gradients

Loss = Callable[[], torch.Tensor]


@dataclass
class Counts:
    """Steps of each player, skipped ones included, and how many were skipped because something was not finite."""

    descents: int = 0
    ascents: int = 0
    skipped_descents: int = 0
    skipped_ascents: int = 0


@dataclass(frozen=True)
class Descent:
    """Losses of one descent, means over the processes: at the weights, and at the perturbed ones if there are any."""

    loss: float
    perturbed_loss: float | None = None

    @property
    def sharpness(self) -> float:
        """How much the perturbation raised the loss; 0 without one."""
        return 0.0 if self.perturbed_loss is None else self.perturbed_loss - self.loss


class SamSga:
    """Two players over one loss (ZSAQ, arXiv 2310.13315); nothing here knows what the loss is made of.

    ``minimizer`` is any optimizer over the parameters of the minimising player, ``maximizer`` any optimizer with
    ``maximize=True`` over those of the other one, such as ``SGD(parameters, lr, maximize=True)``; None leaves the other
    player alone. ``targets`` are what the first of SAM's two passes perturbs, within ``ball``; the second pass takes
    the gradient of the minimising player's parameters there. An ascent is due after each ``ratio`` descents.

    A loss is a function without arguments that gives a scalar, and the same one whenever it is called in one step:
    what it draws from torch, numpy or ``random`` follows from ``seed`` and the number of the step, and the caller's
    states stay as they are. Data and what does not depend on the weights, such as the teacher's output, belong outside;
    autocast, which remembers weights that it has cast, belongs inside.

    Under ``torch.distributed`` each process gives the mean loss of its own equal part; loss and gradients are averaged
    by one all-reduce per pass, before the norm, so that all processes take the same step. The models are not to be
    wrapped for it. A step whose loss or gradient is not finite in any process is counted in ``counts`` and changes
    neither parameters nor optimizers.

    An optimizer of the wrong direction, a ratio below 1, or a loss that uses none of the tensors that a pass is for, as
    under reentrant gradient checkpointing, raises :class:`SchemeError`.
    """

    def __init__(
        self,
        minimizer: torch.optim.Optimizer,
        maximizer: torch.optim.Optimizer | None = None,
        *,
        targets: Sequence[Target] = (),
        ball: Ball | None = None,
        ratio: int = 1,
        seed: int = 0,
        counts: Counts | None = None,
    ) -> None:
        _check_direction(minimizer, maximize=False)
        if maximizer is not None:
            _check_direction(maximizer, maximize=True)
        if ratio < 1:
            raise SchemeError(f"{ratio} descents per ascent; use 1 or more")
        self._minimizer, self._maximizer = minimizer, maximizer
        self._ball, self._ratio, self._seed = ball or Ball(), ratio, seed
        self._targets = list(targets) if self._ball.rho else []
        self.counts = counts or Counts()

    def descend(self, loss: Loss) -> Descent:
        """One step of the minimising player: two passes, or one where nothing is perturbed."""
        seed = self._step_seed(0, self.counts.descents)
        self.counts.descents += 1
        if not self._targets:
            found = _differentiate(loss, _parameters(self._minimizer), seed)
            self.counts.skipped_descents += not _take(self._minimizer, found)
            return Descent(found.loss)
        tensors = [target.tensor for target in self._targets]
        with requiring_gradients(tensors):
            first = _differentiate(loss, tensors, seed)
        if not first.finite:
            self.counts.skipped_descents += 1
            return Descent(first.loss)
        changes = perturbations(self._targets, first.gradients, self._ball)
        first.gradients.clear()  # not to be held beside the second pass
        with perturbed(self._targets, changes):
            changes.clear()  # nor these
            second = _differentiate(loss, _parameters(self._minimizer), seed)
        self.counts.skipped_descents += not _take(self._minimizer, second)
        return Descent(first.loss, second.loss)

    @property
    def ascent_due(self) -> bool:
        """Whether the maximising player moves after the descent that was made last."""
        return self._maximizer is not None and self.counts.descents % self._ratio == 0

    def ascend(self, loss: Loss) -> float:
        """One step of the maximising player; the loss before it."""
        if self._maximizer is None:
            raise SchemeError("nobody maximises; give SamSga a maximizer")
        seed = self._step_seed(1, self.counts.ascents)
        self.counts.ascents += 1
        found = _differentiate(loss, _parameters(self._maximizer), seed)
        self.counts.skipped_ascents += not _take(self._maximizer, found)
        return found.loss

    def _step_seed(self, player: int, step: int) -> int:
        return int(np.random.SeedSequence([self._seed, player, step]).generate_state(1)[0])


@dataclass(frozen=True)
class _Differentiated:
    loss: float
    gradients: list[torch.Tensor]
    finite: bool


def _differentiate(loss: Loss, tensors: list[torch.Tensor], seed: int) -> _Differentiated:
    """Loss and gradients, means over the processes; a tensor that the loss does not use has a gradient of zeros."""
    with isolated_rng(seed):
        value = loss()
        found = torch.autograd.grad(value, tensors, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise SchemeError("the loss uses nothing that is to be changed; gradient checkpointing must not be reentrant")
    gradients = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(tensors, found, strict=True)]
    mean, *means = _mean_over_processes([value.detach(), *gradients])
    length = torch.stack([norm(gradient) for gradient in means]).norm()
    number = float(mean)
    return _Differentiated(number, means, math.isfinite(number) and math.isfinite(length))


def _take(optimizer: torch.optim.Optimizer, found: _Differentiated) -> bool:
    """Step along finite gradients, and say whether they were."""
    if found.finite:
        for parameter, gradient in zip(_parameters(optimizer), found.gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
    return found.finite


def _mean_over_processes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_direction(optimizer: torch.optim.Optimizer, *, maximize: bool) -> None:
    if any(group.get("maximize", False) != maximize for group in optimizer.param_groups):
        player = "maximizer" if maximize else "minimizer"
        raise SchemeError(f"the {player} {type(optimizer).__name__} steps the wrong way; make it with {maximize=}")
