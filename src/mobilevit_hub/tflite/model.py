"""Runs a `.tflite` classifier: photo in, labels out. Needs LiteRT, and neither TensorFlow nor PyTorch.

A file that this package exported says itself how its images are prepared and what its classes are called: in a record
that is attached to it and in `NAME.json` beside `NAME.tflite`. `files` reads and checks all that.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import CheckpointError, InputError, IntegrityError, MobileViTHubWarning, require
from ..images.loading import load_image
from ..images.preparing import FILTERS, prepare
from ..images.sizes import evaluation_resize
from ..tasks.classification import best_labels, check_top_k, predict_each, softmax
from .files import (
    DTYPES,
    TFLITE_OUTPUTS,
    check_record,
    lines_of,
    read_attached,
    read_tflite,
    steps_before,
    try_in_process,
)

MAX_THREADS = 256


class Model:
    """A `.tflite` classifier, ready to run; safe to use from several threads, which then run at the same time.

    Args:
        path: A file that `mobilevit-hub export` wrote, or any other with one RGB image `(1, H, W, 3)`, uint8 or
            float32 in [0, 1], as input and `(1, N)` float32 as output. For another one, images are prepared by
            Apple's rule, and classes without a `labels.txt` in the file are called "class 0", "class 1", …
        threads: How many threads LiteRT uses for one image, 1 to 256.

    Attributes:
        record: What an exported file says of itself; None of another one.
        labels: Name of each class.
        size: Height and width of the input in pixels.
        dtype: Type of the input, `"uint8"` or `"float32"`.
        preprocessing: How photos are prepared.
        output: What `run` returns, `"probabilities"` or `"logits"`.

    Raises:
        NotFoundError: There is no such file.
        SourceError: The file cannot be read.
        IntegrityError: The file is not the one that the JSON beside it describes.
        ConfigError: The JSON beside it, or the record in it, is no JSON.
        CheckpointError: The file is no TFLite file, LiteRT cannot run it, its input or output has another form, or
            its labels or its record do not fit.
        InputError: `threads` is out of range.
        MissingDependencyError: LiteRT is not installed.

    Examples:
        >>> model = Model("mobilevit-s.tflite")  # doctest: +SKIP
        >>> model("cat.jpg", top_k=1)  # doctest: +SKIP
        [{'label': 'tabby, tabby cat', 'index': 281, 'score': 0.71}]
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        require("ai_edge_litert", "tflite", "Running a .tflite file")
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise InputError(
                f"threads is {threads!r}; expected a whole number from 1 to {MAX_THREADS}.",
                field="threads",
                found=threads,
            )
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"The model is {path!r}; expected the path of a .tflite file.", field="path", found=path)
        self.path, self.threads = Path(path).expanduser(), threads
        self._content, sidecar = read_tflite(self.path)
        if sidecar is None:
            try_in_process(self.path, self._content)
        self._local = threading.local()
        with _as_checkpoint_error(self.path):
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.size, self.dtype, count = _check_form(self.path, inputs, outputs)
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]

        labels, attached_record = read_attached(self.path, self._content)
        self.labels = [f"class {i}" for i in range(count)] if labels is None else lines_of(labels)
        if len(self.labels) != count:
            raise CheckpointError(f"{self.path}: has {len(self.labels)} labels for {count} classes.", path=self.path)
        self.record = attached_record  # not that of the JSON, which no hash protects
        if sidecar is not None and self.record is not None:
            _check_same(self.path, sidecar, self.record)
        if self.record is None:
            self._prepare_unknown()
        else:
            check_record(self.path, self.record, self.size, self.dtype, count, labels)
            preprocessing = self.record["preprocessing"]
            resample = FILTERS[preprocessing["interpolation"]]
            self.preprocessing = steps_before(preprocessing["resize"], self.size, resample, self.dtype)
            self.output: str = self.record["output"]["name"]

    def _prepare_unknown(self) -> None:
        """Decides, for a file without a record, what it does not say."""
        short = evaluation_resize(max(self.size))
        self.preprocessing = steps_before({"shortest_edge": short}, self.size, Image.Resampling.BILINEAR, self.dtype)
        scores = self.run(np.zeros((1, *self.size, 3), self.dtype))
        self.output = TFLITE_OUTPUTS[0] if scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3 else TFLITE_OUTPUTS[1]
        warnings.warn(
            f"{self.path}: does not say how its images are prepared; using Apple's rule: short side "
            f"{short}, bilinear, crop {self.size[0]} × {self.size[1]}, RGB from "
            f"{DTYPES[self.dtype][0]} to {DTYPES[self.dtype][1]}. Its output is read as {self.output}.",
            MobileViTHubWarning,
            stacklevel=3,
        )

    @property
    def _interpreter(self) -> Any:
        """This thread's own: an interpreter cannot be used by two at a time. All share the bytes of the file."""
        if not hasattr(self._local, "interpreter"):
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=self._content, num_threads=self.threads)
            interpreter.allocate_tensors()
            self._local.interpreter = interpreter
        return self._local.interpreter

    def prepare(self, image: Any) -> np.ndarray:
        """Resizes and crops an image as the source of the file was evaluated.

        Args:
            image: Anything that `load_image` takes.

        Returns:
            `(1, H, W, 3)` in the type of the input: uint8, 0 to 255, or float32, 0 to 1. Where the resized image is
            smaller than that, it has a black border.

        Raises:
            ImageError, InputError, MissingDependencyError: As `load_image`.
        """
        return prepare(load_image(image), self.preprocessing, channels_last=True)[None]

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Runs the network on prepared images, one after the other.

        Args:
            pixels: `(B, H, W, 3)` in the type of the input; B is any number.

        Returns:
            `(B, N)` float32, `output` says what.

        Raises:
            InputError: The array has another shape or type.
            CheckpointError: LiteRT failed.
        """
        shape, dtype = getattr(pixels, "shape", ()), str(getattr(pixels, "dtype", type(pixels).__name__))
        if not isinstance(pixels, np.ndarray) or shape[1:] != (*self.size, 3) or dtype != self.dtype:
            raise InputError(
                f"The images are {dtype} of shape {tuple(shape)}; {self.path.name} takes {self.dtype} of shape "
                f"(B, {self.size[0]}, {self.size[1]}, 3), as prepare() makes it.",
                field="pixels",
            )
        scores = np.empty((len(pixels), len(self.labels)), np.float32)
        with _as_checkpoint_error(self.path):
            interpreter = self._interpreter
            for i, image in enumerate(pixels):
                interpreter.set_tensor(self._input, image[None])
                interpreter.invoke()
                scores[i] = interpreter.get_tensor(self._output)[0]
        return scores

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Maps prepared images `(B, H, W, 3)` to probabilities `(B, N)`; arguments and errors as for `run`."""
        scores = self.run(pixels)
        return softmax(scores) if self.output == "logits" else scores

    def __call__(self, image: Any, top_k: int = 5) -> list[dict[str, Any]]:
        """Classifies one image.

        Args:
            image: Anything that `load_image` takes.
            top_k: How many labels to return.

        Returns:
            `[{"label", "index", "score"}, …]`, the best first, with scores that are probabilities in [0, 1].

        Raises:
            ImageError, InputError, MissingDependencyError: As `load_image`; the second also for `top_k`.
        """
        check_top_k(top_k)
        return best_labels(self.probabilities(self.prepare(image))[0], self.labels, top_k)

    def predict(self, images: Iterable[Any], *, top_k: int = 5) -> Iterator[dict[str, Any]]:
        """Classifies images one by one; see `mobilevit_hub.predict` for what is yielded."""
        return predict_each(self, images, top_k)


@contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:  # what LiteRT raises, mostly on damaged files
        raise CheckpointError(
            f"{path}: LiteRT cannot run this file: {' '.join(str(error).split())[:300]}", path=path
        ) from error


def _check_same(path: Path, sidecar: dict[str, Any], record: dict[str, Any]) -> None:
    """Raises `IntegrityError` where the JSON beside a file contradicts the record in it."""
    for name, fact in record.items():
        if (said := sidecar.get(name, fact)) != fact:
            raise IntegrityError(
                f"{path.with_suffix('.json')}: says that {name} is {str(said)[:80]}, but the file itself says "
                f"{str(fact)[:80]}: the JSON was changed. Export again.",
                path=path.with_suffix(".json"),
                field=name,
            )


def _check_form(
    path: Path, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> tuple[tuple[int, int], str, int]:
    """Size and type of the input of a classifier, and the number of its classes."""
    forms = [[(np.dtype(d["dtype"]).name, *d["shape_signature"].tolist()) for d in side] for side in (inputs, outputs)]
    match forms:
        case [[(("uint8" | "float32") as dtype, 1 | -1, height, width, 3)], [("float32", 1 | -1, count)]] if (
            min(height, width, count) > 0
        ):
            return (height, width), dtype, count
    found = " and ".join(
        f"{kind} {', '.join(f'{dtype} {tuple(shape)}' for dtype, *shape in side) or 'none'}"
        for kind, side in zip(("input", "output"), forms, strict=True)
    )
    raise CheckpointError(
        f"{path}: no image classifier of the form that can be run: {found}; expected one input (1, H, W, 3), uint8 or "
        "float32, and one output (1, N), float32.",
        path=path,
    )
