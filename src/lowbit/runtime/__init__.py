"""Using a model: predictions on text, and the layouts that make them fast or small."""

from lowbit.runtime.predict import predict
from lowbit.runtime.prepare import prepare
from lowbit.runtime.report import Choice, RuntimeReport
from lowbit.runtime.switch import Task, by_task, load_task, switch

__all__ = ["Choice", "RuntimeReport", "Task", "by_task", "load_task", "predict", "prepare", "switch"]
