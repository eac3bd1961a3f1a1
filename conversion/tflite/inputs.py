"""What an export is made from: a checkpoint, how its images are prepared, and photos to calibrate and compare on."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.data.opening import SPLIT_NAMES, open_images, public_name
from mobilevit_hub.errors import ImageError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.hub.find import Checkpoint, find_checkpoint
from mobilevit_hub.images.loading import image_files, load_image
from mobilevit_hub.images.preparing import FILTERS, MAX_EDGE, Preprocessing, fields_of, prepare, preprocessing_from
from mobilevit_hub.models import from_pretrained
from mobilevit_hub.network.configuration import load_config
from mobilevit_hub.tflite.files import steps_before

from .progress import bar

MIN_CALIBRATION, CALIBRATION_IMAGES = 100, 200
"""Fewest photos that a range may be taken from, and how many are taken where there are more."""
BATCH_PIXELS = 8 * 256**2
"""The trainable model's attention takes memory with the fourth power of the side, so large images go one by one."""


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint, opened for export."""

    checkpoint: Checkpoint
    model: Any
    """The trainable Keras model."""
    labels: list[str]
    preprocessing: dict[str, Any]
    """What is done to a photo before the file gets it; a part of the record."""
    channel_order: str

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        crop = self.preprocessing["crop"]
        return crop["height"], crop["width"]

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Of the trainable Keras model, which shares none of the rewrites with the file."""
        values = self.pixel_values(pixels)
        batch = max(1, BATCH_PIXELS // (values.shape[1] * values.shape[2]))
        parts = [self.model(values[i : i + batch], training=False).numpy() for i in range(0, len(values), batch)]
        return np.concatenate(parts)

    def prepare(self, photo: Any, dtype: str) -> np.ndarray:
        """What the file gets of a photo, `(1, H, W, 3)`, by the checkpoint's own steps."""
        steps = self.preprocessing
        settings = steps_before(steps["resize"], self.image_size, FILTERS[steps["interpolation"]], dtype)
        return prepare(load_image(photo), settings, channels_last=True)[None]

    def pixel_values(self, pixels: np.ndarray) -> np.ndarray:
        """What the network takes, from bytes or floats in RGB."""
        values = pixels[..., ::-1] if self.channel_order == "bgr" else pixels
        return np.ascontiguousarray(values, np.float32) / np.float32(255 if pixels.dtype == np.uint8 else 1)


def open_for_export(name: str | Path | Checkpoint, resolution: int | None, places: dict[str, Any]) -> ExportSource:
    """Opens a checkpoint for export at a resolution, in pixels; None: its own."""
    checkpoint = find_checkpoint(name, **places)
    name, config, own = checkpoint.name, load_config(checkpoint), preprocessing_from(fields_of(checkpoint))
    if config.num_channels != 3:
        raise InputError(f"{name}: takes {config.num_channels} channels; only photos, with 3, can be exported.")
    if not config.num_labels:
        raise InputError(
            f"{name}: has no classifier, so there is nothing to export; train one with: mobilevit-hub train."
        )
    preprocessing = _preprocessing(own, resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a patch alone in its map, which is no news here
        model = from_pretrained(checkpoint, framework="tf")
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return ExportSource(checkpoint, model, labels, preprocessing, own.channel_order)


def _preprocessing(own: Preprocessing, resolution: int | None) -> dict[str, Any]:
    """The steps before the file, at a resolution; the border around the crop keeps its share."""
    if not (own.do_resize and own.do_rescale) or abs(own.rescale_factor * 255 - 1) > 1e-6:
        raise InputError(
            "Only checkpoints whose photos are resized and scaled to [0, 1] can be exported.",
            field="preprocessor",
        )
    resize, crop = dict(own.size), dict(own.crop_size)
    side = resize.get("shortest_edge")
    if not own.do_center_crop:
        crop = {"height": side, "width": side} if side else dict(resize)
    if resolution is not None:
        if type(resolution) is not int or not 32 <= resolution <= 1024:
            raise InputError(
                f"resolution is {resolution!r}; expected a whole number of pixels from 32 to 1024.", field="resolution"
            )
        factor = resolution / max(crop.values())
        resize = {key: max(1, round(value * factor)) for key, value in resize.items()}
        crop = {key: round(value * factor) for key, value in crop.items()}
        if max(resize.values()) > MAX_EDGE:
            raise InputError(
                f"At resolution {resolution} photos would be resized to {max(resize.values())} pixels; the limit is "
                f"{MAX_EDGE}.",
                field="resolution",
            )
    return {"resize": resize, "crop": crop, "interpolation": own.interpolation}


def calibration_photos(
    photos: Any, name: str, source: ExportSource, input_type: str, progress: bool
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Prepared photos to calibrate on, and what is recorded about them.

    Args:
        photos: What `open_unlabelled` returned.
        name: What the user called them.
        source: For which checkpoint.
        input_type: Type of the file's input.
        progress: Show a progress bar.
    """
    order = np.random.default_rng(0).permutation(len(photos))
    prepared: list[np.ndarray] = []
    unreadable = 0
    for i in bar(order, "reading photos", progress):
        if len(prepared) == CALIBRATION_IMAGES:
            break
        try:
            prepared.append(source.prepare(photos[int(i)], input_type))
        except ImageError:
            unreadable += 1
    if len(prepared) < MIN_CALIBRATION:
        bad = f" ({unreadable} more cannot be read)" if unreadable else ""
        raise InputError(
            f"{name}: has {len(prepared)} photos to calibrate on{bad}; expected {MIN_CALIBRATION} or more.",
            path=name,
            field="calibration",
            found=len(prepared),
            expected=MIN_CALIBRATION,
        )
    if unreadable:
        warnings.warn(
            f"{name}: {unreadable} photos cannot be read and were left out.", MobileViTHubWarning, stacklevel=2
        )
    digest = hashlib.sha256(np.concatenate(prepared).tobytes()).hexdigest()
    return prepared, {"source": public_name(name), "images": len(prepared), "sha256": digest}


def open_unlabelled(data: str) -> Any:
    """Photos of a folder, with or without folders of classes, or of any other data set; of its training part."""
    folder = Path(data.removeprefix("imagefolder:")).expanduser()
    if folder.is_dir() and (files := image_files(folder / "train" if _is_split(folder) else folder)):
        return files
    if folder.is_dir() and not list(folder.rglob("*.parquet")):
        return []
    try:
        return open_images(data, "train")
    except NotFoundError:
        if not Path(data).exists():
            raise
        return open_images(data, "validation")


def _is_split(folder: Path) -> bool:
    """Whether `train` in it is a part of the photos, and not a class of that name."""
    train = folder / "train"
    others = any((folder / name).is_dir() for name in SPLIT_NAMES["validation"])
    return train.is_dir() and (others or any(entry.is_dir() for entry in train.iterdir()))
