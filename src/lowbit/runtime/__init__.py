"""Using a model: predictions on text."""

from lowbit.runtime.predict import predict

__all__ = ["predict"]
