"""A checkpoint opened in every runtime that the demo shows, with the `.tflite` files exported from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mobilevit_hub.data.opening import public_name
from mobilevit_hub.errors import InputError, MobileViTHubError
from mobilevit_hub.files import cache_folder, sha256_of
from mobilevit_hub.hub.find import Checkpoint, find_checkpoint
from mobilevit_hub.hub.presets import list_presets
from mobilevit_hub.models import Classifier, from_pretrained
from mobilevit_hub.tflite.model import Model
from mobilevit_hub.version import __version__

EMBEDDED = "mobilevit-xxs-tiny-imagenet"
TITLES = {"pt": "PyTorch", "tf": "Keras", "tflite-fp32": "TFLite fp32", "tflite-int8": "TFLite int8"}
"""What a visitor can compare, and what it is called. int8 is `int8-dynamic`, which needs no photos to calibrate on."""
EXPORTED = {"tflite-fp32": "fp32", "tflite-int8": "int8-dynamic"}
KEPT = 3
"""Models that stay open, and that may be on their way; the one that was chosen longest ago is closed first."""
RETRY_SECONDS = 10
"""So long after a model could not be opened everyone is told why; the next who asks for it after that tries again."""


class BusyError(MobileViTHubError):
    """Too many models are being opened."""


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, ready to classify in every runtime."""

    name: str
    classifiers: dict[str, Any]
    """A `models.Classifier` or `tflite.Model` for each of `TITLES`."""
    files: dict[str, Path]
    """The file whose weights each runtime has."""
    network: Any
    """The trainable PyTorch model, whose gradients say what it looks at."""


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
        places: Options of `hub.find.find_checkpoint`.

    Raises:
        MobileViTHubError: As `from_pretrained` and `export_tflite`.
    """
    report(f"{name}: finding the weights")
    checkpoint = find_checkpoint(name, **places)
    weights = checkpoint.weights_file
    report(f"{name}: opening it in PyTorch")
    network = from_pretrained(checkpoint)
    classifiers: dict[str, Any] = {"pt": Classifier(checkpoint)}
    report(f"{name}: opening it in Keras")
    classifiers["tf"] = Classifier(checkpoint, runtime="tf")
    files = {"pt": weights, "tf": weights}
    written = json.dumps([checkpoint.config_data, checkpoint.processor_data, __version__], sort_keys=True)
    exports = folder / hashlib.sha256((sha256_of(weights) + written).encode()).hexdigest()[:16]
    for runtime, precision in EXPORTED.items():
        files[runtime] = exports / precision / f"{public_name(name).replace('/', '-')}-{precision}.tflite"
        classifiers[runtime] = _exported(checkpoint, files[runtime], precision, report)
    for classifier in classifiers.values():  # the first call of each is slow, and no visitor should wait for it
        classifier.probabilities(classifier.prepare(Image.new("RGB", (64, 64))))
    report(f"{name}: ready")
    return OpenedModel(name, classifiers, files, network)


def _exported(checkpoint: Checkpoint, file: Path, precision: str, report: Callable[[str], None]) -> Model:
    """Opens the file, which is exported first where it is not there yet or damaged."""
    import torch

    threads = torch.get_num_threads()  # as many as PyTorch has, or their times say nothing
    try:
        return Model(file, threads=threads)
    except MobileViTHubError:
        from mobilevit_hub.conversion import export_tflite

        report(f"{checkpoint.name}: exporting {precision}.tflite, some ten seconds the first time")
        folder = file.parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as alone:
            export_tflite(checkpoint, Path(alone, file.name), precision=precision)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another server was faster, and its file is as good
                Path(alone).rename(folder)
        return Model(file, threads=threads)


class Models:
    """The models of a demo: each is opened when it is first asked for, one at a time; the last few stay open.

    Args:
        names: What visitors may choose; the first is the default and is never closed. Nothing else is ever opened.
        folder: Where exported files are kept.
        report: Is told what is being done.
        places: Options of `hub.find.find_checkpoint`.
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
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def open(self, name: str) -> Future[OpenedModel]:
        """The model: opened, on its way, or failed some seconds ago.

        Raises:
            InputError: `name` is not in `names`.
            BusyError: Others are waiting to be opened.
        """
        if name not in self.names:
            raise InputError(
                f"There is no model {str(name)[:80]!r} here; choose one of {', '.join(self.names)}.", field="model"
            )
        with self._lock:
            if name not in self._opened:
                if sum(not future.done() for future in self._opened.values()) >= KEPT:
                    raise BusyError("Several other models are being opened; choose this one again in some minutes.")
                self._opened[name] = Future()
                # A daemon, so that a server that is stopped does not wait for a download.
                threading.Thread(target=self._fill, args=(name, self._opened[name]), daemon=True).start()
            self._opened.move_to_end(name)
            kept = (name, self.names[0])
            ready = [other for other, future in self._opened.items() if future.done() and other not in kept]
            for other in ready[: max(0, len(self._opened) - KEPT)]:
                del self._opened[other]
            return self._opened[name]

    def _fill(self, name: str, future: Future[OpenedModel]) -> None:
        """Opens a model when it is its turn."""
        future.set_running_or_notify_cancel()  # from here on nobody who waits for it can cancel it
        try:
            with self._turn:
                future.set_result(open_model(name, self._folder, self._report, **self._places))
        except BaseException as error:
            future.set_exception(error)
            time.sleep(RETRY_SECONDS)
            with self._lock:
                if self._opened.get(name) is future:
                    del self._opened[name]

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
