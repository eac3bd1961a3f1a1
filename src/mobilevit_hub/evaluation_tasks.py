"""What an evaluation measures for each task: how the outputs of a network become rows, and rows metrics.

`evaluation` runs any `Task`: photos, processes, records and reports are the same for all. A new task, such as
segmentation or detection, is one more record here: the type of its rows, a function that fills them, and one that
sums them up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CheckpointError
from .metrics import (
    agreement,
    calibration_error,
    confusion_matrix,
    hits,
    mcnemar,
    per_class,
    reliability,
    share,
)

TOP = 5
"""Labels of a photo that are kept."""
OTHER = "(another label)"
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


def _classification_row(labels: int) -> np.dtype:
    return np.dtype([("state", "<u4"), ("label", "<i4", (labels,)), ("best", "<i4", (TOP,)), ("score", "<f4", (TOP,))])


def _fill_classification(rows: np.ndarray, probabilities: np.ndarray, taking_part: np.ndarray | None) -> None:
    """The best labels and their probabilities; among a part of the labels these add up to 1 again."""
    if not np.isfinite(probabilities).all():
        raise CheckpointError("The network returned a probability that is no number; its weights may be damaged.")
    if taking_part is not None:
        probabilities = probabilities[:, taking_part]
        probabilities = probabilities / np.maximum(probabilities.sum(1, keepdims=True), 1e-30)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    kept = best.shape[1]
    rows["score"][:, :kept] = np.take_along_axis(probabilities, best, 1)
    rows["best"][:, :kept] = best if taking_part is None else taking_part[best]
    rows["best"][:, kept:] = -1


def _score_classification(rows: np.ndarray, labels: list[str], used: np.ndarray) -> dict[str, Any]:
    truth, best = rows["label"], rows["best"]
    right = hits(truth, best)
    top1, interval1 = share(right)
    top5, interval5 = share(hits(truth, best, TOP))
    bins = reliability(rows["score"][:, 0], right)
    found: dict[str, Any] = {
        "metrics": {"top1": top1, "top5": top5, "calibration_error": calibration_error(bins)},
        "intervals": {"top1": interval1, "top5": interval5},
        "reliability": bins,
    }
    if truth.shape[1] == 1:  # with several right labels a photo belongs to no one class
        found |= _by_class(truth[:, 0], best[:, 0], hits(truth, best, TOP), labels, used)
        found["metrics"]["mean_per_class"] = float(np.mean([row["top1"] for row in found["per_class"]]))
    return found


def _by_class(
    truth: np.ndarray, named: np.ndarray, among_five: np.ndarray, labels: list[str], used: np.ndarray
) -> dict[str, Any]:
    """Scores of each class that has photos, and the confusion matrix of the classes that the data has."""
    position = np.full(len(labels), len(used))
    position[used] = np.arange(len(used))
    rows, columns = position[truth], position[named]
    count, right = per_class(rows, rows == columns, len(used))
    _, right5 = per_class(rows, among_five, len(used))
    table = [
        {
            "index": int(label),
            "label": labels[label],
            "count": int(count[i]),
            "top1": int(right[i]) / int(count[i]),
            "interval": share(np.arange(count[i]) < right[i])[1],
            "top5": int(right5[i]) / int(count[i]),
        }
        for i, label in enumerate(used)
        if count[i]
    ]
    names = [labels[label] for label in used]
    outside = bool((columns == len(used)).any())
    matrix = confusion_matrix(rows, columns, len(used) + outside)
    return {"per_class": table, "confusion": matrix, "confusion_labels": names + [OTHER] * outside}


def _compare_classification(first: np.ndarray, second: np.ndarray, same_labels: bool) -> dict[str, Any]:
    one, other = (hits(rows["label"], rows["best"]) for rows in (first, second))
    lost, gained = int((one & ~other).sum()), int((other & ~one).sum())
    return {
        "count": len(first),
        "agreement": agreement(first["best"][:, 0], second["best"][:, 0]) if same_labels else None,
        "lost": lost,
        "gained": gained,
        "p_value": mcnemar(lost, gained),
    }


CLASSIFICATION = Task(
    "image-classification", _classification_row, _fill_classification, _score_classification, _compare_classification
)
