"""The loss on rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lowbit.calibration import evaluating
from lowbit.loop import length_order, processes
from lowbit.tuning.batches import Collate, Items, Row


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel, features: Sequence[Row], collate: Collate, items: Items, batch_size: int
) -> float:
    """Mean loss over all items, in eval mode; the processes share the rows and get the same number."""
    from accelerate.utils import reduce

    world, order = processes(), length_order(features)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    with evaluating(model):
        for batch in batches[world.process_index :: world.num_processes]:
            rows = [features[row] for row in batch]
            count = sum(map(items, rows))
            inputs = {name: value.to(model.device) for name, value in collate(rows).items()}
            loss = float(model(**inputs).loss)
            total += torch.tensor([loss * count, count], dtype=torch.float64, device=model.device)
    summed, counted = reduce(total, "sum").tolist()
    return summed / counted
