"""What a training step minimises: the model's own loss, alone or with what a teacher says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.losses import output_distance

Loss = Callable[[nn.Module, Mapping[str, torch.Tensor]], torch.Tensor]


def label_loss(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss that the model gives for inputs with labels."""
    return model(**inputs).loss


def distillation(teacher: PreTrainedModel) -> Loss:
    """The labels' loss plus the distances to the logits and to the hidden states of a frozen ``teacher``.

    Source: TernaryBERT (Zhang et al. 2020, arXiv 2009.12812).
    """
    teacher.eval().requires_grad_(False)

    def loss(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        teacher.to(inputs["input_ids"].device)
        with torch.no_grad():
            target = teacher(**inputs, output_hidden_states=True)
        output = model(**inputs, output_hidden_states=True)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return output.loss + output_distance(output, target, mask)

    return loss
