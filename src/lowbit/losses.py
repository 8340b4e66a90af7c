"""Discrepancies between what a model gives and what it should give."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORED = -100  # transformers' mark for a label that is not scored


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, float32 [scored], of the labels that are not ``IGNORED``, in their order.

    ``logits`` float [rows, tokens, vocabulary], ``labels`` integer [rows, tokens]. Row by row, so that only one row of
    logits is held twice.
    """
    losses = []
    for row, targets in zip(logits, labels, strict=True):
        scored = targets != IGNORED
        losses.append(F.cross_entropy(row[scored].float(), targets[scored], reduction="none"))
    return torch.cat(losses)
