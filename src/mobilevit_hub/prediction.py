"""Images in, labels out: the same for a checkpoint in either framework and for a `.tflite` file.

Imports no framework; a checkpoint brings its own when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .choices import RUNTIMES, check_choice
from .errors import InputError
from .hub.find import Checkpoint
from .tasks.classification import predict_each


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


def open_classifier(model: str | Path | Checkpoint, *, runtime: str | None = None, **options: Any) -> Any:
    """A `models.Classifier` or a `tflite.Model`: what `predict` classifies with, to be used more than once.

    Args:
        model: Name of the checkpoint, what `hub.find.find_checkpoint` found, or path of a `.tflite` file.
        runtime: As for `predict`.
        options: As for `predict`.

    Raises:
        InputError: There is no such runtime or option, or the runtime does not run such a model.
    """
    name = model.name if isinstance(model, Checkpoint) else str(model)
    is_file = name.lower().endswith(".tflite") and not isinstance(model, Checkpoint)
    if runtime is None:
        runtime = "tflite" if is_file else "pt"
    check_choice("runtime", runtime, RUNTIMES)
    if is_file and runtime != "tflite":
        raise InputError(
            f"runtime is {runtime!r}, but {name!r} is a .tflite file; only 'tflite' runs it.",
            field="runtime",
            found=runtime,
        )
    if runtime != "tflite":
        from .models import Classifier

        return Classifier(model, runtime=runtime, **options)
    if not is_file:
        raise InputError(
            f"runtime is 'tflite', which runs a .tflite file, but the model is {name!r}. Make the file with: "
            f"mobilevit-hub export {name} {Path(name).name}.tflite",
            field="model",
            found=name,
        )
    if unknown := sorted(set(options) - {"threads"}):
        raise InputError(f"{name!r} is a file, for which there is no option {unknown[0]!r}.", field=unknown[0])
    from .tflite.model import Model

    return Model(name, **options)
