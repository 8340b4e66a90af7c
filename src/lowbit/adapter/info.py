"""What a task adapter says of itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

ADAPTER_VERSION = 1
LABELS, CAUSAL_LM = "labels", "causal-lm"
VALUES, FACTORS = "values", "factors"


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is for.

    ``fingerprint`` names the backbone it was trained on; ``task_type`` is ``labels`` (classification and regression) or
    ``causal-lm``; ``label_names`` is None for regression and language models; ``trained`` counts what was trained by
    group; ``options`` records how; ``scores`` are metrics by evaluation set, None where undefined; ``backbone`` is the
    backbone's name on the hub, where it was loaded from there. ``format`` is ``values`` (what takes the place of the
    backbone's own) or ``factors`` (low-rank ones beside its linears, in the files of the library peft).
    """

    fingerprint: str
    task: str
    metrics: tuple[str, ...]
    primary: str
    label_names: tuple[str, ...] | None
    max_length: int
    trained: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    backbone: str | None = None
    task_type: str = LABELS
    format: str = VALUES
    version: int = ADAPTER_VERSION

    @property
    def is_language_model(self) -> bool:
        """Whether it goes on from a text, rather than give it a label or value."""
        return self.task_type == CAUSAL_LM

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return dataclasses.asdict(self)
