"""One photo through every runtime: what each answers, how long it takes, how far it is from the first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mobilevit_hub.errors import InputError
from mobilevit_hub.tasks.classification import best_labels

from .models import TITLES, OpenedModel

RUNS, SECONDS = 5, 0.25
"""A network runs on a photo so many times, fewer where that takes longer; the median is shown."""


def classify(photo: Image.Image, model: OpenedModel, runtimes: Sequence[str], *, top_k: int = 5) -> dict[str, Any]:
    """Classifies a photo in each of some runtimes.

    Args:
        photo: Upright RGB, as `load_image` returns it.
        model: The opened checkpoint.
        runtimes: Keys of `TITLES`; the first that is there in their order is what the others are compared with.
        top_k: How many labels to return.

    Returns:
        `{"model", "results": [{"runtime", "predictions": [{"label", "index", "score"}, …], "ms", "bytes",
        "difference"}, …], "agree"}`. `ms` is the network alone, the median of some runs; `difference` is the largest of
        all probabilities from those of the first runtime; `agree` says whether all have the same first label.

    Raises:
        InputError: `runtimes` is empty or has something else in it.
    """
    if not runtimes or (unknown := [name for name in runtimes if name not in TITLES]):
        found = f"{unknown[0]!r} is no runtime" if runtimes else "No runtime is chosen"
        raise InputError(f"{found}; choose at least one of {', '.join(TITLES)}.", field="runtimes")
    results: list[dict[str, Any]] = []
    reference: np.ndarray | None = None
    for runtime in (name for name in TITLES if name in runtimes):
        classifier = model.classifiers[runtime]
        pixels = classifier.prepare(photo)
        classifier.probabilities(pixels)  # the first call of a thread makes what the others use
        times: list[float] = []
        while len(times) < RUNS and sum(times) < SECONDS:
            started = time.perf_counter()
            probabilities = classifier.probabilities(pixels)[0]
            times.append(time.perf_counter() - started)
        reference = probabilities if reference is None else reference
        results.append(
            {
                "runtime": runtime,
                "predictions": best_labels(probabilities, classifier.labels, top_k),
                "ms": round(1000 * statistics.median(times), 3),
                "bytes": model.files[runtime].stat().st_size,
                "difference": float(np.abs(probabilities - reference).max()),
            }
        )
    first = {result["predictions"][0]["index"] for result in results}
    return {"model": model.name, "results": results, "agree": len(first) == 1}
