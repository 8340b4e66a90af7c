"""lowbit: quantize once without data, fine-tune each task by its outliers."""

from lowbit.hf import LowbitConfig

__version__ = "0.1.0"

__all__ = ["LowbitConfig", "__version__"]
