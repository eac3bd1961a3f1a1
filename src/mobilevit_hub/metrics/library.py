"""The metrics as `evaluate.Metric` classes, to be used where that library's are: `combine`, `add_batch`, `compute`.

Examples:
    >>> from mobilevit_hub.metrics import Accuracy
    >>> Accuracy(top_k=2).compute(predictions=[[3, 1], [0, 2]], references=[1, 1])["accuracy"]
    0.5
"""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import evaluate
import numpy as np

from . import comparison, scores

_INDEX = datasets.Value("int64")


class _Metric(evaluate.Metric):
    """What the classes share: features, and no file or network for anything."""

    predictions: Any = _INDEX
    """Type of an entry of `predictions`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(keep_in_memory=True)
        self.options = options

    def _build_data_dir(self) -> str:
        """Where the library would keep columns; a folder that is there, as they stay in memory."""
        return tempfile.gettempdir()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(type(self).__doc__),
            citation="",
            inputs_description="predictions and references: class indices",
            features=datasets.Features({"predictions": self.predictions, "references": _INDEX}),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        """Nothing is downloaded."""

    def _compute(self, **columns: Any) -> dict[str, Any]:
        return self.scores(**{name: np.asarray(column) for name, column in columns.items()})

    def scores(self, **columns: np.ndarray) -> dict[str, Any]:
        """Maps the columns to scores."""
        raise NotImplementedError


class Accuracy(_Metric):
    """Share of photos whose class is among the first `top_k` that are named, and its 95 % interval (Wilson).

    `predictions` are rows of class indices, the best first, `(n, k)`.

    Args:
        top_k: How many count; default 1.
    """

    predictions = datasets.Sequence(_INDEX)

    def __init__(self, top_k: int = 1) -> None:
        super().__init__(top_k=top_k)

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`accuracy`, and `interval` as a pair."""
        accuracy, interval = scores.share(scores.hits(references, predictions, self.options["top_k"]))
        return {"accuracy": accuracy, "interval": interval}


class PerClassAccuracy(_Metric):
    """Share of right photos of each class; NaN where a class has none.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes=classes)

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`per_class`, `(classes,)`, and `mean_per_class`, over the classes that have photos."""
        count, right = scores.per_class(references, predictions == references, self.options["classes"])
        shares = np.where(count > 0, right / np.maximum(count, 1), np.nan)
        return {"per_class": shares, "mean_per_class": float(np.nanmean(shares))}


class ConfusionMatrix(_Metric):
    """Counts of photos by class, the row, and named class, the column.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes=classes)

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`confusion_matrix`, `(classes, classes)`."""
        return {"confusion_matrix": scores.confusion_matrix(references, predictions, self.options["classes"])}


class CalibrationError(_Metric):
    """Expected calibration error over bins of equal width.

    `predictions` are the probabilities of the named classes, `references` 1 where that class is right, else 0.

    Args:
        bins: Number of bins; default 15.
    """

    predictions = datasets.Value("float64")

    def __init__(self, bins: int = scores.BINS) -> None:
        super().__init__(bins=bins)

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`calibration_error`."""
        bins = scores.reliability(predictions, references.astype(bool), self.options["bins"])
        return {"calibration_error": scores.calibration_error(bins)}


class Agreement(_Metric):
    """Share of photos on which two models name the same class; `references` are those of the other model."""

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`agreement`."""
        return {"agreement": comparison.agreement(predictions, references)}


class McNemar(_Metric):
    """McNemar's exact test of two models on the same photos.

    `predictions` and `references` are 1 where the one and the other model is right, else 0.
    """

    def scores(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:  # type: ignore[override]
        """`lost` and `gained`, photos that only the other and only the first model has right, and `p_value`."""
        ours, theirs = predictions.astype(bool), references.astype(bool)
        lost, gained = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
        return {"lost": lost, "gained": gained, "p_value": comparison.mcnemar(lost, gained)}
