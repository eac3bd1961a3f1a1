"""Measuring checkpoints on labelled photos, by one function."""

from .run import evaluate

__all__ = ["evaluate"]
