"""Task adapters: what one task adds to a shared backbone."""

from lowbit.adapter.apply import adapter_target, apply_adapter, model_fingerprint, remove_adapter
from lowbit.adapter.card import ITS_BACKBONE, adapter_card
from lowbit.adapter.files import (
    INFO_FILE,
    adapter_files,
    adapter_folder,
    is_adapter,
    read_adapter,
    read_info,
    record_scores,
    write_adapter,
)
from lowbit.adapter.info import CAUSAL_LM, FACTORS, AdapterInfo
from lowbit.adapter.load import check_classifier, load, load_causal_lm, load_classifier, task_fields
from lowbit.adapter.merge import merge

__all__ = [
    "CAUSAL_LM",
    "FACTORS",
    "INFO_FILE",
    "ITS_BACKBONE",
    "AdapterInfo",
    "adapter_card",
    "adapter_files",
    "adapter_folder",
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
    "record_scores",
    "remove_adapter",
    "task_fields",
    "write_adapter",
]
