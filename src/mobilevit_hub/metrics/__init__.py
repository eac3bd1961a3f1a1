"""Metrics of an evaluation: plain functions of arrays, and the same as `evaluate.Metric` classes.

The functions need NumPy alone. The classes (`Accuracy`, `PerClassAccuracy`, `ConfusionMatrix`, `CalibrationError`,
`Agreement`, `McNemar`) are made when they are first asked for, as importing `evaluate` takes seconds; they use no
network and leave no files.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .comparison import agreement, mcnemar, wilson_interval
from .scores import Reliability, calibration_error, confusion_matrix, hits, most_confused, per_class, reliability, share

_CLASSES = ("Accuracy", "Agreement", "CalibrationError", "ConfusionMatrix", "McNemar", "PerClassAccuracy")

__all__ = [
    "Reliability",
    "agreement",
    "calibration_error",
    "confusion_matrix",
    "hits",
    "mcnemar",
    "most_confused",
    "per_class",
    "reliability",
    "share",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..errors import require

    require("evaluate", "eval", f"mobilevit_hub.metrics.{name}")
    return getattr(import_module(f"{__name__}.library"), name)


def __dir__() -> list[str]:
    return sorted((*__all__, *_CLASSES))
