"""Task adapters: what one task adds to a shared backbone."""

from lowbit.adapter.apply import adapter_target, apply_adapter, model_fingerprint, remove_adapter
from lowbit.adapter.files import (
    CAUSAL_LM,
    TENSORS_FILE,
    AdapterInfo,
    is_adapter,
    read_adapter,
    read_info,
    write_adapter,
)
from lowbit.adapter.load import check_classifier, load, load_causal_lm, load_classifier, task_fields
from lowbit.adapter.merge import merge

__all__ = [
    "CAUSAL_LM",
    "TENSORS_FILE",
    "AdapterInfo",
    "adapter_target",
    "apply_adapter",
    "check_classifier",
    "is_adapter",
    "load",
    "load_causal_lm",
    "load_classifier",
    "merge",
    "model_fingerprint",
    "read_adapter",
    "read_info",
    "remove_adapter",
    "task_fields",
    "write_adapter",
]
