"""Rules for the fields of configs and preprocessors: functions of (name, value) that return the clean value.

A value that a rule does not accept raises `ConfigError` with the name, the value and what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .errors import ConfigError

Rule = Callable[[str, Any], Any]


def fail(name: str, value: Any, expected: str) -> ConfigError:
    """The error for a field whose value is not accepted."""
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return ConfigError(f"{name} is {shown}; expected {expected}.", field=name, found=value, expected=expected)


def integer(low: int, high: int) -> Rule:
    """A whole number; true, 4.0 and "4" are none."""

    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise fail(name, value, f"an integer from {low} to {high}")
        return value

    return check


def number(low: float, high: float, open_low: bool = False, open_high: bool = False) -> Rule:
    """A finite number; bounds belong to the range unless they are open. Whole numbers become floats."""
    text = f"a number {'above' if open_low else 'from'} {low:g} {'and below' if open_high else 'to'} {high:g}"

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise fail(name, value, text)
        if value < low or value > high or (open_low and value == low) or (open_high and value == high):
            raise fail(name, value, text)
        return float(value)

    return check


def whole(low: int, high: int) -> Rule:
    """An integer that old config files may spell `2.0`; transformers types it as int."""
    check = integer(low, high)
    return lambda name, value: check(name, int(value) if type(value) is float and value.is_integer() else value)


def one_of(*allowed: Any) -> Rule:
    """One of a few values."""

    def check(name: str, value: Any) -> Any:
        if isinstance(value, bool) or value not in allowed:
            raise fail(name, value, "one of " + ", ".join(map(str, allowed)))
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise fail(name, value, "true or false")
    return value


def several(item: Rule, shortest: int, longest: int | None = None) -> Rule:
    """A list whose entries all obey one rule."""
    longest = longest or shortest
    count = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"

    def check(name: str, value: Any) -> list:
        if not isinstance(value, list | tuple) or not shortest <= len(value) <= longest:
            raise fail(name, value, f"a list of {count} values")
        return [item(f"{name}[{i}]", v) for i, v in enumerate(value)]

    return check


def either(single: Rule, many: Rule) -> Rule:
    """One value or a list of values."""
    return lambda name, value: (many if isinstance(value, list | tuple) else single)(name, value)


def optional(rule: Rule) -> Rule:
    """None, or a value that obeys the rule."""
    return lambda name, value: None if value is None else rule(name, value)
