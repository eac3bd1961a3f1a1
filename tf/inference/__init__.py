"""The inference form in Keras, and the graph that a phone runs."""

from .model import FusedModel, fuse

__all__ = ["FusedModel", "fuse"]
