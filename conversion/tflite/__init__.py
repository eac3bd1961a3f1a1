"""`.tflite` files that a phone app can use as they are."""

from .export import export_all_precisions, export_tflite
from .record import Export

__all__ = ["Export", "export_all_precisions", "export_tflite"]
