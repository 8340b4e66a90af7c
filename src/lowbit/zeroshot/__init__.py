"""Zero-shot quantization: a student and a generator play against each other, without data."""

from lowbit.zeroshot.minimax import Counts, Descent, SamSga
from lowbit.zeroshot.sam import Ball, Target

__all__ = ["Ball", "Counts", "Descent", "SamSga", "Target"]
