"""The version of this package; read as text by `setup.py`."""

from __future__ import annotations

__version__ = "0.1.0"
