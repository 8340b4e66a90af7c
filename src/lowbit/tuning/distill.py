"""What a training step minimises: the model's own loss, alone or with what a teacher says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lowbit.losses import hidden_distance, logit_distance

Loss = Callable[[nn.Module, Mapping[str, torch.Tensor]], torch.Tensor]


def label_loss(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss that the model gives for inputs with labels."""
    return model(**inputs).loss


def distillation(teacher: PreTrainedModel) -> Loss:
    """The labels' loss plus the distances to the logits and to the last hidden states of a frozen ``teacher``.

    Source: TernaryBERT (Zhang et al. 2020, arXiv 2009.12812), with the last layer standing for all of them.
    """
    teacher.eval().requires_grad_(False)

    def loss(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        teacher.to(inputs["input_ids"].device)
        with torch.no_grad():
            target = teacher(**inputs, output_hidden_states=True)
        output = model(**inputs, output_hidden_states=True)
        hidden = hidden_distance(_last_states(output), _last_states(target), _mask(inputs))
        return output.loss + logit_distance(_rows(output.logits), _rows(target.logits)) + hidden

    return loss


def _last_states(output: Any) -> torch.Tensor:
    """Hidden states [rows, tokens, width] of the last layer; of the encoder, where there are two stacks."""
    states = getattr(output, "encoder_hidden_states", None) or output.hidden_states
    return states[-1]


def _mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """1 for tokens, 0 for padding."""
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """Logits as [rows, outputs]; every token of a language model is a row."""
    return logits.flatten(0, -2)
