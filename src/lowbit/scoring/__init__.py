"""Metrics of a loaded model: on a task's evaluation sets, and on plain text."""

from lowbit.scoring.task import check_metrics, decide, score_model
from lowbit.scoring.text import TextScore, score_text

__all__ = ["TextScore", "check_metrics", "decide", "score_model", "score_text"]
