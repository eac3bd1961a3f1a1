"""What a task owns: how outputs become results and rows, and rows metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LEFT_OUT, MEASURED, UNREADABLE = 0, 1, 2
"""State of a photo: without a label, which ReaL has; measured; one that cannot be read."""


@dataclass(frozen=True)
class Task:
    """What is measured."""

    name: str
    row: Callable[[int], np.dtype]
    """Type of the row of one photo and model, given how many labels of a photo may be right; with the fields `state`
    and `label`, filled up with -1."""
    fill: Callable[[np.ndarray, np.ndarray, np.ndarray | None], None]
    """`(rows (n,), outputs of the network (n, …), indices of the labels that take part or None)`."""
    scores: Callable[[np.ndarray, list[str], np.ndarray], dict[str, Any]]
    """Maps the measured rows `(n,)`, the names of the labels and the indices of those that the data has to `metrics`,
    `intervals`, and what a report shows."""
    compare: Callable[[np.ndarray, np.ndarray, bool], dict[str, Any]]
    """Maps the measured rows of two models, and whether they have the same labels, to how they differ."""
