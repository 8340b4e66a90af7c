"""Task adapters: what one task adds to a shared backbone."""

from lowbit.adapter.apply import adapter_target, apply_adapter, model_fingerprint, remove_adapter
from lowbit.adapter.files import TENSORS_FILE, AdapterInfo, is_adapter, read_adapter, read_info, write_adapter
from lowbit.adapter.load import load, load_classifier, task_fields
from lowbit.adapter.merge import merge

__all__ = [
    "TENSORS_FILE",
    "AdapterInfo",
    "adapter_target",
    "apply_adapter",
    "is_adapter",
    "load",
    "load_classifier",
    "merge",
    "model_fingerprint",
    "read_adapter",
    "read_info",
    "remove_adapter",
    "task_fields",
    "write_adapter",
]
