"""Helpers that training and evaluation share."""

from lowbit.loop.passes import (
    PRECISIONS,
    Progress,
    batches,
    check_lengths,
    check_sizes,
    default_device,
    isolated_rng,
    length_order,
    predict_logits,
    trainable_attention,
    use_bf16,
)
from lowbit.loop.processes import is_first, once, processes
from lowbit.loop.saved import SavedRun, model_digest, rows_digest
from lowbit.loop.schedule import SCHEDULES, rate_by_step
from lowbit.loop.state import TrainingState

__all__ = [
    "PRECISIONS",
    "SCHEDULES",
    "Progress",
    "SavedRun",
    "TrainingState",
    "batches",
    "check_lengths",
    "check_sizes",
    "default_device",
    "is_first",
    "isolated_rng",
    "length_order",
    "model_digest",
    "once",
    "predict_logits",
    "processes",
    "rate_by_step",
    "rows_digest",
    "trainable_attention",
    "use_bf16",
]
