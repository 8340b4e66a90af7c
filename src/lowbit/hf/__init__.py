"""Plug-ins for other libraries. Importing this package registers lowbit with transformers."""

from lowbit.hf.config import LowbitConfig
from lowbit.hf.kinds import is_causal, language_kind
from lowbit.hf.quantizer import LowbitQuantizer, attach, disk_tensors, is_quantized
from lowbit.hf.save import save

__all__ = [
    "LowbitConfig",
    "LowbitQuantizer",
    "attach",
    "disk_tensors",
    "is_causal",
    "is_quantized",
    "language_kind",
    "save",
]
