"""Evaluation of a stored model on a task, or on plain text."""

from lowbit.evaluation.task import evaluate
from lowbit.evaluation.text import perplexity

__all__ = ["evaluate", "perplexity"]
