"""Runs `.tflite` files with LiteRT alone; `mobilevit_hub.conversion` makes them."""

from .model import Model

__all__ = ["Model"]
