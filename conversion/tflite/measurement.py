"""What an exported file costs and what it loses: difference from its source, latency, accuracy on labelled photos."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.errors import InputError
from mobilevit_hub.hub.find import ASSETS
from mobilevit_hub.metrics import mcnemar, wilson_interval
from mobilevit_hub.tflite.model import Model

PHOTOS = ASSETS / "photos.jpg"
WARM_UP, CALLS, SECONDS = 3, 30, 5.0
LOWEST = -60.0
"""Logits that a float32 softmax can still tell from minus infinity, counted from the largest one."""


def check_photos() -> list[np.ndarray]:
    """The 32 photos on which every export is compared with its source, `(128, 128, 3)` bytes each."""
    from mobilevit_hub.images.loading import load_image

    sheet = np.asarray(load_image(PHOTOS))
    return [sheet[y : y + 128, x : x + 128] for y in range(0, 512, 128) for x in range(0, 1024, 128)]


@dataclass(frozen=True)
class Difference:
    """How far the logits of an export are from those of its source."""

    largest: float
    """max |export − source| / mean |source|."""
    error: float
    """‖export − source‖ / ‖source − its mean for each image‖."""
    agreement: float
    """Share of the images whose best class is the same."""
    images: int


def difference(outputs: np.ndarray, expected: np.ndarray, *, probabilities: bool) -> Difference:
    """Compares an export with its source.

    Args:
        outputs: What the file returned, `(B, N)`.
        expected: Logits of the source, `(B, N)`.
        probabilities: Whether the file returns probabilities. Then the logarithms are compared, each image's mean
            taken out: probabilities do not know it.
    """
    found, wanted = (np.asarray(array, np.float64) for array in (outputs, expected))
    if probabilities:
        found = np.log(np.maximum(found, math.exp(LOWEST)))
        wanted = wanted - wanted.max(1, keepdims=True)
        wanted = np.maximum(wanted - np.log(np.exp(wanted).sum(1, keepdims=True)), LOWEST)
        found, wanted = (array - array.mean(1, keepdims=True) for array in (found, wanted))
    scale = np.abs(wanted).mean() or 1.0
    return Difference(
        largest=float(np.abs(found - wanted).max() / scale),
        error=float(np.linalg.norm(found - wanted) / (np.linalg.norm(wanted - wanted.mean(1, keepdims=True)) or 1.0)),
        agreement=float((outputs.argmax(1) == expected.argmax(1)).mean()),
        images=len(outputs),
    )


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image, from the input tensor to the output tensor."""

    threads: int
    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def latency(paths: list[Path], threads: int) -> list[Latency]:
    """Times files in turns, so that what else the machine does meets all of them alike.

    Args:
        paths: Finished files.
        threads: Threads of the interpreter.
    """
    calls: list[Callable[[], Any]] = []
    for path in paths:
        model = Model(path, threads=threads)
        pixels = np.zeros((1, *model.size, 3), model.dtype)
        calls.append(lambda model=model, pixels=pixels: model.run(pixels))  # type: ignore[misc]
    times: list[list[float]] = [[] for _ in paths]
    started = time.perf_counter()
    for turn in range(WARM_UP + CALLS):
        order = range(len(calls)) if turn % 2 else range(len(calls) - 1, -1, -1)
        for i in order:
            before = time.perf_counter()
            calls[i]()
            times[i].append(1000 * (time.perf_counter() - before))
        if turn > WARM_UP + 4 and time.perf_counter() - started > SECONDS * len(calls):
            break
    found = []
    for taken in times:
        low, median, high = statistics.quantiles(taken[WARM_UP:], n=4)
        found.append(Latency(threads, median, low, high, len(taken) - WARM_UP))
    return found


def processor_name() -> str:
    """What the times depend on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text("utf-8").splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if names:
        return names[0]
    import platform

    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Comparison:
    """A file and its source on the same labelled photos."""

    dataset: str
    count: int
    """Photos."""
    source_top1: float
    top1: float
    interval: tuple[float, float]
    """95 % interval of `top1` (Wilson)."""
    agreement: float
    """Share of the photos on which both name the same class."""
    lost: int
    """Photos that only the source has right."""
    gained: int
    """Photos that only the file has right."""
    p_value: float
    """McNemar's exact test: how likely so uneven a split is if neither is better."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; shares are fractions."""
        return asdict(self)


def compare(
    models: list[Model],
    source: Callable[[np.ndarray], np.ndarray],
    photos: Iterable[np.ndarray | None],
    labels: np.ndarray,
    dataset: str,
) -> list[Comparison]:
    """Runs files and their source on labelled photos, in one pass.

    Args:
        models: The files.
        source: Maps prepared pixels `(1, H, W, 3)` to the logits of the source.
        photos: Prepared pixels, one at a time; None for a photo that cannot be read, which is left out.
        labels: Class index of each photo.
        dataset: What the photos are called.
    """
    classes, truth = [], []
    for pixels, label in zip(photos, labels, strict=True):
        if pixels is not None:
            classes.append([int(run(pixels).argmax()) for run in (source, *(model.run for model in models))])
            truth.append(int(label))
    if not truth:
        raise InputError(f"{dataset}: none of its photos can be read.", field="compare")
    best, count = np.array(classes).T, len(truth)
    expected, right = best[0], best == np.array(truth)
    found = []
    for own, correct in zip(best[1:], right[1:], strict=True):
        lost, gained = int((right[0] & ~correct).sum()), int((correct & ~right[0]).sum())
        found.append(
            Comparison(
                dataset=dataset,
                count=count,
                source_top1=float(right[0].mean()),
                top1=float(correct.mean()),
                interval=wilson_interval(int(correct.sum()), count),
                agreement=float((own == expected).mean()),
                lost=lost,
                gained=gained,
                p_value=mcnemar(lost, gained),
            )
        )
    return found
