"""What a row says of the machine that trained for it."""

import torch
from rows import Row

from lowbit.loop import default_device, use_bf16


def training_device() -> Row:
    """Number format and device of training with default options."""
    return {
        "precision": "bf16" if use_bf16("auto", default_device()) else "fp32",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
