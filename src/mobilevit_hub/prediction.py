"""Images in, labels out: the same for a checkpoint in either framework and for a `.tflite` file.

Imports no framework; a checkpoint brings its own when it is opened.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np

from .architecture import RUNTIMES
from .errors import InputError
from .pipeline import check_workers, default_workers, prepare_ahead, room_for


def predict(
    images: Any,
    model: str | Path = "mobilevit-xxs-tiny-imagenet",
    *,
    runtime: str | None = None,
    top_k: int = 5,
    workers: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Classifies images.

    Args:
        images: A path, array, tensor, bytes or PIL image; or a list or iterator of such, or a batch of 4 axes.
        model: Name of the checkpoint, or path of a `.tflite` file.
        runtime: `"pt"` for PyTorch, `"tf"` for Keras, `"tflite"` for LiteRT; default: `"tflite"` for a `.tflite`
            file, else `"pt"`.
        top_k: How many labels to return per image.
        workers: Threads that prepare images while the network computes; 0: none. Default: the processors but one, and
            none for an iterator, which may depend on what came before.
        options: As for `from_pretrained`; of a `.tflite` file, `threads`.

    Returns:
        One entry per image: `{"path", "predictions": [{"label", "index", "score"}, …], "ms"}` with
        scores that are probabilities in [0, 1] and the time in milliseconds, or `{"path", "error"}`
        for an image that cannot be read.
    """
    if not isinstance(images, list | tuple | Iterator) and getattr(images, "ndim", None) != 4:
        images = [images]
    return list(predict_each(open_classifier(model, runtime=runtime, **options), images, top_k, workers))


def open_classifier(model: str | Path, *, runtime: str | None = None, **options: Any) -> Any:
    """A `runtimes.Classifier` or a `tflite.Model`: what `predict` classifies with, to be used more than once.

    Args:
        model: Name of the checkpoint, or path of a `.tflite` file.
        runtime: As for `predict`.
        options: As for `predict`.

    Raises:
        InputError: There is no such runtime or option, or the runtime does not run such a model.
    """
    is_file = str(model).lower().endswith(".tflite")
    if runtime is None:
        runtime = "tflite" if is_file else "pt"
    if runtime not in RUNTIMES:
        raise InputError(
            f"runtime is {runtime!r}; expected one of {', '.join(RUNTIMES)}.", field="runtime", found=runtime
        )
    if is_file and runtime != "tflite":
        raise InputError(
            f"runtime is {runtime!r}, but {str(model)!r} is a .tflite file; only 'tflite' runs it.",
            field="runtime",
            found=runtime,
        )
    if runtime != "tflite":
        from .runtimes import Classifier

        return Classifier(model, runtime=runtime, **options)
    if not is_file:
        raise InputError(
            f"runtime is 'tflite', which runs a .tflite file, but the model is {str(model)!r}. Make the file with: "
            f"mobilevit-hub export {model} {Path(model).name}.tflite",
            field="model",
            found=str(model),
        )
    if unknown := sorted(set(options) - {"threads"}):
        raise InputError(f"{str(model)!r} is a file, for which there is no option {unknown[0]!r}.", field=unknown[0])
    from .tflite import Model

    return Model(model, **options)


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
