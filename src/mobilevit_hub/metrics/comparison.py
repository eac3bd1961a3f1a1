"""How sure a share is, and whether one model is better than another on the same photos."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, 1927)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share, width = successes / count, z * z / count
    centre = share + width / 2
    spread = z * math.sqrt(share * (1 - share) / count + width / (4 * count))
    return max(0.0, (centre - spread) / (1 + width)), min(1.0, (centre + spread) / (1 + width))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value of McNemar's test: the smaller of the two counts under a fair coin."""
    count = lost + gained
    tail = sum(math.comb(count, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**count)


def agreement(first: Any, second: Any) -> float:
    """Share of the photos on which two models name the same class.

    Args:
        first: Class indices that one model names, `(n,)`, n from 1.
        second: Those of the other, `(n,)`.
    """
    return float((np.asarray(first) == np.asarray(second)).mean())
