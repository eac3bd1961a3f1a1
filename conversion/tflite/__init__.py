"""`.tflite` files that a phone app can use as they are."""

from .export import Export, export_all_precisions, export_tflite

__all__ = ["Export", "export_all_precisions", "export_tflite"]
