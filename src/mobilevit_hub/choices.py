"""The words by which users choose: frameworks, runtimes, precisions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .errors import InputError

FRAMEWORKS = ("pt", "tf")
"""PyTorch and Keras, as users name them."""
RUNTIMES = (*FRAMEWORKS, "tflite")
"""What runs a classifier: a framework, or LiteRT a `.tflite` file."""
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8")
"""Of `.tflite` files, the exactest first."""
TFLITE_INPUTS = ("uint8", "float32")
"""Types of the image that a `.tflite` file takes: 0 to 255, or 0 to 1."""
TFLITE_OUTPUTS = ("probabilities", "logits")
"""What a `.tflite` classifier returns, and the name of its output."""


def check_framework(framework: str, field: str = "framework") -> None:
    """Raises `InputError` unless `framework` is one of `FRAMEWORKS`; `field` is what the user called it."""
    check_choice(field, framework, FRAMEWORKS)


def check_choice(field: str, value: Any, choices: Collection[str]) -> None:
    """Raises `InputError` unless `value`, of what the user calls `field`, is one of a few words."""
    if value not in choices:
        raise InputError(f"{field} is {value!r}; expected one of {', '.join(choices)}.", field=field, found=value)
