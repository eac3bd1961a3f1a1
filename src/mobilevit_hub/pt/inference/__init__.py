"""The inference form in PyTorch: what `model.optimize_for_inference()` returns."""

from .model import InferenceModel

__all__ = ["InferenceModel"]
