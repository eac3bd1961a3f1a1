"""Scores of a classifier as functions of arrays.

Throughout, `truth` holds class indices, `(n,)`, or `(n, m)` where several are right, filled up with -1; `best` holds
the indices that a model names, the best first, `(n, k)`, filled up with -1 where it has fewer classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .comparison import wilson_interval

BINS = 15
"""Bins of confidence, as in Guo et al., 2017 (arXiv 1706.04599)."""


def hits(truth: np.ndarray, best: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether a right class is among the first `k` that the model names.

    Args:
        truth: `(n,)` or `(n, m)`.
        best: `(n, k)` or more columns.
        k: How many count.

    Returns:
        `(n,)` booleans.
    """
    truth = truth.reshape(len(truth), -1)
    return ((best[:, :k, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)).any((1, 2))


def share(right: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The share of trues among booleans `(n,)`, n from 1, and its 95 % interval (Wilson)."""
    successes = int(np.count_nonzero(right))
    return successes / len(right), wilson_interval(successes, len(right))


def per_class(truth: np.ndarray, right: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos of each class, and how many of them are right.

    Args:
        truth: `(n,)` class indices.
        right: `(n,)` booleans.
        classes: Number of classes.

    Returns:
        Two arrays `(classes,)`: photos, and right ones.
    """
    return np.bincount(truth, minlength=classes), np.bincount(truth[right], minlength=classes)


def confusion_matrix(truth: np.ndarray, named: np.ndarray, classes: int) -> np.ndarray:
    """Counts photos by their class, the row, and the class that the model names, the column: `(classes, classes)`.

    Args:
        truth: `(n,)` class indices.
        named: `(n,)` class indices.
        classes: Number of classes.
    """
    flat = np.bincount(truth.astype(np.int64) * classes + named, minlength=classes * classes)
    return flat.reshape(classes, classes)


def most_confused(matrix: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of a confusion matrix as (class, named, photos), the most frequent first."""
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, mistakes.shape)
    return [(int(r), int(c), int(mistakes[r, c])) for r, c in zip(rows, columns, strict=True) if mistakes[r, c]]


@dataclass(frozen=True)
class Reliability:
    """Photos by the probability of the class that the model names, in bins of equal width; each `(bins,)`."""

    count: np.ndarray
    confidence: np.ndarray
    """Mean probability; 0 in an empty bin."""
    accuracy: np.ndarray
    """Share of right ones; 0 in an empty bin."""


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Sorts photos into bins of confidence; a bin holds its upper bound, and the first one 0 as well.

    Args:
        confidence: `(n,)` probabilities of the named class, in [0, 1].
        right: `(n,)` booleans.
        bins: Number of bins.
    """
    # compared with the bounds themselves: a product with `bins` would round
    bounds = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(bounds, confidence.astype(np.float64), side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.maximum(count, 1)
    return Reliability(
        count,
        np.bincount(index, confidence, minlength=bins) / filled,
        np.bincount(index, right, minlength=bins) / filled,
    )


def calibration_error(bins: Reliability) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, weighted by the photos of a bin."""
    return float((np.abs(bins.confidence - bins.accuracy) * bins.count).sum() / max(1, bins.count.sum()))
