"""Discrepancies between what a model gives and what it should give."""

from __future__ import annotations

from typing import Any

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


def logit_distance(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the rows of what a model's logits [rows, outputs] say of its teacher's, a float32 scalar.

    Kullback-Leibler divergence in nats times temperature^2 (Hinton et al. 2015, arXiv 1503.02531), which keeps the size
    of the gradients; squared error where there is one output, as in regression. ``weights`` float [rows], which sum to
    1: how much each row counts, by default all alike.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        found = F.mse_loss(student, teacher, reduction="none").squeeze(-1)
    else:
        log_student = F.log_softmax(student / temperature, dim=-1)
        log_teacher = F.log_softmax(teacher / temperature, dim=-1)
        found = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1) * temperature**2
    return found.mean() if weights is None else (found * weights).sum()


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of hidden states [rows, tokens, width] over the teacher's mean square, the mean over the rows.

    ``mask`` [rows, tokens] is 0 at padding. A float32 scalar: 0 for equal states, 1 for states that are all 0.
    """
    weight = mask.to(torch.float32)[..., None]
    errors = ((student.float() - teacher.float()).square() * weight).sum((1, 2))
    return (errors / (teacher.float().square() * weight).sum((1, 2))).mean()


def output_distance(
    student: Any, teacher: Any, mask: torch.Tensor, *, temperature: float = 1.0, hidden: float = 1.0
) -> torch.Tensor:
    """How far two models' outputs for the same batch are apart: in what they predict, and in what they see.

    The first part is :func:`logit_distance`, where there are logits for each token the mean over the tokens of a row;
    models without a head have none. The second one, times ``hidden``, is the mean :func:`hidden_distance` of the hidden
    states over all layers, of the decoder too (TernaryBERT, Zhang et al. 2020, arXiv 2009.12812). ``mask`` [rows,
    tokens] is 0 at padding, which all leave out. Each row counts alike, so that equal parts of a batch have its
    distance as their mean. Outputs are transformers' with ``output_hidden_states=True``.
    """
    layers = zip(layer_states(student), layer_states(teacher), strict=True)
    errors = [hidden_distance(ours, theirs, _known(theirs, mask)) for ours, theirs in layers]
    found = hidden * torch.stack(errors).mean()
    for name in ("logits", "start_logits", "end_logits"):
        logits = getattr(teacher, name, None)
        if logits is not None:
            ours, theirs, weights = scored_logits(getattr(student, name), logits, mask)
            found = found + logit_distance(ours, theirs, temperature, weights)
    return found


def last_states(output: Any) -> torch.Tensor:
    """Hidden states [rows, tokens, width] of the last layer; of the encoder, where there are two stacks."""
    states = getattr(output, "encoder_hidden_states", None) or output.hidden_states
    return states[-1]


def layer_states(output: Any) -> list[torch.Tensor]:
    """Hidden states [rows, tokens, width] of every layer, and of both stacks where there are two.

    Embeddings, which come before the first layer, are left out.
    """
    stacks = [getattr(output, f"{stack}hidden_states", None) for stack in ("", "encoder_", "decoder_")]
    return [states for stack in stacks if stack for states in stack[1:]]


def _known(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask of hidden states: all tokens of a decoder with inputs of its own count."""
    return mask if mask.shape == states.shape[:2] else torch.ones_like(states[..., 0])


def scored_logits(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Both models' logits as [n, outputs], one for each text or for each token that is no padding.

    Then also the weights [n] with which every text counts alike; None where all of them are the same.
    """
    if teacher.dim() == 2:
        return student, teacher, None
    if teacher.shape[:2] != mask.shape:  # of a decoder with inputs of its own
        return student.flatten(0, 1), teacher.flatten(0, 1), None
    kept = mask.bool()
    weights = (mask / mask.sum(1, keepdim=True) / len(mask))[kept]
    return student[kept], teacher[kept], weights
