"""Conversion of published checkpoints into the folder that both twins read, and back; and export to `.tflite`."""

# At once, not on first use: the modules have the names of the functions and would hide them.
from .convert import Conversion, convert
from .parity import ParityReport, compare
from .sources import Source, open_source
from .tflite import Export, export_all_precisions, export_tflite
from .verify import Verification, verify

__all__ = [
    "Conversion",
    "Export",
    "ParityReport",
    "Source",
    "Verification",
    "compare",
    "convert",
    "export_all_precisions",
    "export_tflite",
    "open_source",
    "verify",
]
