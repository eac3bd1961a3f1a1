"""Conversion of published checkpoints into the folder that both twins read, and back."""

# At once, not on first use: the modules have the names of the functions and would hide them.
from .convert import Conversion, convert
from .parity import ParityReport, compare
from .sources import Source, open_source
from .verify import Verification, verify

__all__ = [
    "Conversion",
    "ParityReport",
    "Source",
    "Verification",
    "compare",
    "convert",
    "open_source",
    "verify",
]
