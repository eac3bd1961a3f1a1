"""Classification: from logits to labels, and from labels to metrics, reports and pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pipeline import check_workers, default_workers, prepare_ahead, room_for
from ..errors import CheckpointError, InputError
from ..figures import BLUE, new_figure, png_of
from ..files import write_file
from ..metrics import agreement, calibration_error, confusion_matrix, hits, mcnemar, per_class, reliability, share
from .task import Task

TOP = 5
"""Labels of a photo that are kept."""
OTHER = "(another label)"


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


def predict_each(
    classifier: Any, images: Iterable[Any], top_k: int, workers: int | None = None
) -> Iterator[dict[str, Any]]:
    """Classifies images one by one; see `predict` for what is yielded.

    Args:
        classifier: What has `prepare`, from an image to a batch of one, `probabilities`, from there to `(1, N)`,
            and `labels`.
        images: Anything that `load_image` takes.
        top_k: How many labels to return per image.
        workers: As for `predict`.
    """
    check_top_k(top_k)
    check_workers(workers)
    if workers is None:  # an iterator may fill one buffer again and again, or wait for our answer
        alone = isinstance(images, Iterator) or (isinstance(images, Sized) and len(images) < 2)
        workers = 0 if alone else default_workers()

    def prepare(image: Any) -> tuple[np.ndarray, float]:
        started = time.perf_counter()
        return classifier.prepare(image), time.perf_counter() - started

    with room_for(workers):
        for i, (image, result) in enumerate(prepare_ahead(images, prepare, workers=workers, ahead=4 * workers)):
            path = str(image) if isinstance(image, str | Path) else f"image {i}"
            if isinstance(result, Exception):
                yield {"path": path, "error": str(result)}
                continue
            started = time.perf_counter()
            predictions = best_labels(classifier.probabilities(result[0])[0], classifier.labels, top_k)
            seconds = result[1] + time.perf_counter() - started
            yield {"path": path, "predictions": predictions, "ms": round(1000 * seconds, 3)}


def check_top_k(top_k: int) -> None:
    """Raises `InputError` unless `top_k` is a whole number from 1."""
    if type(top_k) is not int or top_k < 1:
        raise InputError(f"top_k is {top_k!r}; expected a whole number from 1.", field="top_k", found=top_k)


def best_labels(scores: np.ndarray, labels: Any, top_k: int) -> list[dict[str, Any]]:
    """The labels with the highest of the scores `(N,)`, the best first; `labels` has a name for each index."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[int(i)], "index": int(i), "score": float(scores[i])} for i in best]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits `(B, N)`."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draw_predictions(photos: list[Any], results: list[dict[str, Any]], path: str | Path) -> None:
    """Draws photos, each above the bars of its best labels.

    Args:
        photos: PIL images, one per result.
        results: Entries of `mobilevit_hub.predict`.
        path: PNG file to write.
    """
    figure = new_figure(3.2 * len(photos), 5.2)
    grid = figure.subplots(2, len(photos), squeeze=False, height_ratios=(2, 1))
    for column, (photo, result) in enumerate(zip(photos, results, strict=True)):
        grid[0][column].imshow(np.asarray(photo))
        # Without parse_math, a name with two dollar signs would be read as a formula.
        grid[0][column].set_title(Path(result["path"]).name, fontsize=10, parse_math=False)
        grid[0][column].axis("off")
        best = result["predictions"][::-1]
        axes = grid[1][column]
        axes.barh(range(len(best)), [100 * p["score"] for p in best], color=BLUE)
        for row, prediction in enumerate(best):
            label = prediction["label"].split(",")[0]
            axes.text(2, row, f"{label}  {100 * prediction['score']:.0f} %", va="center", fontsize=10, parse_math=False,
                      bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.set_xlabel(f"probability (%)   ·   {result['ms']:.0f} ms", fontsize=9)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    write_file(path, png_of(figure))
