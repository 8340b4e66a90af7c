"""How far a quantized model agrees with its teacher on real text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from lowbit.calibration import evaluating
from lowbit.errors import DataError
from lowbit.losses import hidden_distance, last_states, logit_distance, scored_logits


@torch.no_grad()
def agreement(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, float]:
    """Means over all texts, or tokens where a model predicts tokens, as JSON; no labels are needed.

    ``divergence``: Kullback-Leibler divergence of the teacher's prediction from the student's in nats, for a regression
    the squared error; ``same``: part of the predictions whose largest output is the same one, 1 for a regression;
    ``hidden``: relative squared error of the last hidden states. A model without a head has the last one alone.
    ``batches`` hold inputs by name, padded where ``attention_mask`` is 0. No batch raises :class:`DataError`.
    """
    sums: dict[str, float] = {}
    rows = texts = 0
    with evaluating(student), evaluating(teacher):
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            said, wanted = (
                model(**{name: value.to(model.device) for name, value in inputs.items()}, output_hidden_states=True)
                for model in (student, teacher)
            )
            mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).to(student.device)
            found = {"hidden": float(hidden_distance(last_states(said), last_states(wanted), mask)) * len(mask)}
            texts += len(mask)
            if getattr(wanted, "logits", None) is not None:
                ours, theirs, _ = scored_logits(said.logits, wanted.logits, mask)
                found["divergence"] = float(logit_distance(ours, theirs)) * len(ours)
                found["same"] = float((ours.argmax(-1) == theirs.argmax(-1)).sum())
                rows += len(ours)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
    if not texts:
        raise DataError("there is no text to compare the models on; give at least one batch")
    return {name: total / (texts if name == "hidden" else rows) for name, total in sums.items()}
