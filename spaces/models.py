"""A checkpoint opened in every runtime that the demo shows, with the `.tflite` files exported from it."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mobilevit_hub import __version__
from mobilevit_hub.checkpoints import find_checkpoint
from mobilevit_hub.data import public_name
from mobilevit_hub.errors import InputError, MobileViTHubError
from mobilevit_hub.files import cache_folder, sha256_of
from mobilevit_hub.presets import Preset, list_presets
from mobilevit_hub.runtimes import Classifier, from_pretrained
from mobilevit_hub.tflite import Model

EMBEDDED = "mobilevit-xxs-tiny-imagenet"
RUNTIMES = {"pt": "PyTorch", "tf": "Keras", "tflite-fp32": "TFLite fp32", "tflite-int8": "TFLite int8"}
"""What a visitor can compare, and what it is called. int8 is `int8-dynamic`, which needs no photos to calibrate on."""
PRECISIONS = {"tflite-fp32": "fp32", "tflite-int8": "int8-dynamic"}
KEPT = 3
"""Models that stay open; of the others, the one that was chosen longest ago is closed."""


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, ready to classify in every runtime."""

    name: str
    classifiers: dict[str, Any]
    """A `runtimes.Classifier` or `tflite.Model` for each of `RUNTIMES`."""
    files: dict[str, Path]
    """The file whose weights each runtime has."""
    network: Any
    """The trainable PyTorch model, whose gradients say what it looks at."""
    preset: Preset | None


def published_names() -> list[str]:
    """Classifiers that can be opened by name, the embedded one first; the others need a network once."""
    names = [preset.name for preset in list_presets("image-classification") if preset.loadable]
    return [EMBEDDED, *(name for name in names if name != EMBEDDED)]


def open_model(name: str, folder: Path, report: Callable[[str], None], **places: Any) -> OpenedModel:
    """Opens a checkpoint in every runtime. What was exported before for the same weights is taken from `folder`.

    Args:
        name: An alias, a folder, or a Hub id.
        folder: Where exported files are kept.
        report: Is told what is being done.
        places: Options of `checkpoints.find_checkpoint`.

    Raises:
        MobileViTHubError: As `from_pretrained` and `export_tflite`.
    """
    report(f"{name}: finding the weights")
    checkpoint = find_checkpoint(name, **places)
    weights = checkpoint.weights_file
    report(f"{name}: opening it in PyTorch")
    network = from_pretrained(name, **places)
    classifiers: dict[str, Any] = {"pt": Classifier(name, **places)}
    report(f"{name}: opening it in Keras")
    classifiers["tf"] = Classifier(name, runtime="tf", **places)
    files = {"pt": weights, "tf": weights}
    exports = folder / f"{sha256_of(weights)[:16]}-{__version__}"
    for runtime, precision in PRECISIONS.items():
        files[runtime] = exports / f"{public_name(name).replace('/', '-')}-{precision}.tflite"
        try:
            classifiers[runtime] = Model(files[runtime])
        except MobileViTHubError:  # not there yet, or damaged
            from mobilevit_hub.conversion import export_tflite

            report(f"{name}: exporting {precision}.tflite, some ten seconds the first time")
            exports.mkdir(parents=True, exist_ok=True)
            export_tflite(name, files[runtime], precision=precision, overwrite=True, **places)
            classifiers[runtime] = Model(files[runtime])
    for classifier in classifiers.values():  # the first call of each is slow, and no visitor should wait for it
        classifier.probabilities(classifier.prepare(Image.new("RGB", (64, 64))))
    report(f"{name}: ready")
    return OpenedModel(name, classifiers, files, network, checkpoint.preset)


class Models:
    """The models of a demo: each is opened when it is first asked for, by one thread, the last few stay open.

    Args:
        names: What visitors may choose; the first is the default. Nothing else is ever opened.
        folder: Where exported files are kept.
        report: Is told what is being done.
        places: Options of `checkpoints.find_checkpoint`.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        *,
        folder: Path,
        report: Callable[[str], None] = lambda line: None,
        **places: Any,
    ) -> None:
        self.names = list(dict.fromkeys([*names, *published_names()]))
        self._folder, self._report, self._places = folder, report, places
        self._opened: OrderedDict[str, Future[OpenedModel]] = OrderedDict()
        self._lock, self._worker = threading.Lock(), ThreadPoolExecutor(1, "open-model")

    def open(self, name: str) -> Future[OpenedModel]:
        """The model, opened or on its way; what failed is tried again by the call after the one that is told so.

        Raises:
            InputError: `name` is not in `names`.
        """
        if name not in self.names:
            raise InputError(
                f"There is no model {str(name)[:80]!r} here; choose one of {', '.join(self.names)}.", field="model"
            )
        with self._lock:
            future = self._opened.get(name)
            if future is None:
                future = self._opened[name] = self._worker.submit(
                    open_model, name, self._folder, self._report, **self._places
                )
            self._opened.move_to_end(name)
            if future.done() and future.exception() is not None:
                del self._opened[name]
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        return future

    def opened(self, number: int) -> OpenedModel | None:
        """The model at a place of `names`, if it is open; opens none."""
        future = self._opened.get(self.names[number]) if 0 <= number < len(self.names) else None
        ready = future is not None and future.done() and future.exception() is None
        return future.result() if future is not None and ready else None


def export_folder() -> Path | None:
    """Where exported files outlive the demo; None where the user has no cache folder that can be written."""
    try:
        folder = cache_folder() / "demo"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):  # can it be written?
            return folder
    except (OSError, RuntimeError):
        return None
