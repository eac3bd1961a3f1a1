"""From an upright RGB photo to the `pixel_values` of a checkpoint: plain functions and their settings.

The steps are those of transformers' MobileViT processor, with equal bits: short side to `size`, centre crop, scale to
[0, 1], RGB → BGR where the checkpoint wants it. Nothing is normalised. Needs NumPy and Pillow only.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import ConfigError, InputError, MobileViTHubWarning
from ..hub.download import PROCESSOR_FILE
from ..hub.find import Checkpoint, config_values
from ..hub.presets import Preset
from ..rules import Rule, fail, flag, integer, number, one_of, several
from .sizes import check_resize, evaluation_resize

MAX_EDGE = 4096
FILTERS = {name.lower(): value for name, value in Image.Resampling.__members__.items()}

# Keys of published files that say nothing about the pixels, and those that only a call may set.
IGNORED_KEYS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_valid_processor_keys",
    "pad_size",
    "data_format",
    "input_data_format",
    "device",
    "return_tensors",
    "disable_grouping",
    "image_seq_length",
}


@dataclass(frozen=True)
class Preprocessing:
    """How the photos of a checkpoint are prepared; the defaults are those of the published MobileViT files."""

    size: dict[str, int] = field(default_factory=lambda: {"shortest_edge": 288})
    """Sides after the resize: `shortest_edge`, or `height` and `width`."""
    crop_size: dict[str, int] = field(default_factory=lambda: {"height": 256, "width": 256})
    """Sides of the centre crop; a smaller photo gets a black border."""
    resample: int = Image.Resampling.BILINEAR
    """Pillow's number of the filter."""
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_flip_channel_order: bool = True
    """Whether the checkpoint takes BGR."""

    @property
    def channel_order(self) -> Literal["bgr", "rgb"]:
        """Order of the channels in `pixel_values`."""
        return "bgr" if self.do_flip_channel_order else "rgb"

    @property
    def interpolation(self) -> str:
        """Name of the resize filter, such as `"bilinear"`."""
        return Image.Resampling(self.resample).name.lower()


def prepare(picture: Image.Image, settings: Preprocessing, *, channels_last: bool = False) -> np.ndarray:
    """The pixels of an RGB picture as a network takes them: float32 in [0, 1], or uint8 without `do_rescale`.

    Args:
        picture: As `load_image` returns it.
        settings: Those of the checkpoint.
        channels_last: Whether to return `(H, W, 3)` in place of `(3, H, W)`.

    Raises:
        ImageError: It is too elongated to be resized.
    """
    if settings.do_resize:
        picture = picture.resize(_resized(picture, settings.size), Image.Resampling(settings.resample))
    pixels = np.asarray(picture)
    if settings.do_center_crop:
        pixels = _center_crop(pixels, settings.crop_size)
    if settings.do_flip_channel_order:
        pixels = pixels[..., ::-1]
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    pixels = np.ascontiguousarray(pixels)
    return _levels(settings.rescale_factor)[pixels] if settings.do_rescale else pixels


def prepare_map(labels: Any, settings: Preprocessing, *, reduce_labels: bool = False) -> np.ndarray:
    """A map of class numbers with the resize, by the nearest pixel, and the crop of its photo: `(H, W)`, int64.

    Args:
        labels: `(H, W)` or `(1, H, W)`, 0 to 255.
        settings: Those of the checkpoint.
        reduce_labels: Whether 0 means "ignore", 255; the other labels move down by 1.
    """
    numbers = np.asarray(labels)
    numbers = numbers[0] if numbers.ndim == 3 and len(numbers) == 1 else numbers
    if numbers.ndim != 2 or numbers.dtype.kind not in "iub" or numbers.min() < 0 or numbers.max() > 255:
        raise InputError(
            f"A segmentation map has the shape {numbers.shape} and type {numbers.dtype}; expected (H, W) whole numbers "
            "from 0 to 255.",
            field="segmentation_maps",
        )
    numbers = numbers.astype(np.uint8)
    if reduce_labels:
        numbers = np.where((numbers == 0) | (numbers == 255), 255, numbers - 1).astype(np.uint8)
    if settings.do_resize:
        picture = Image.fromarray(numbers)
        numbers = np.asarray(picture.resize(_resized(picture, settings.size), Image.Resampling.NEAREST))
    if settings.do_center_crop:
        numbers = _center_crop(numbers, settings.crop_size)
    return numbers.astype(np.int64)


def _resized(picture: Image.Image, size: dict[str, int]) -> tuple[int, int]:
    short = size.get("shortest_edge")
    return check_resize(picture.width, picture.height, short) if short else (size["width"], size["height"])


def _center_crop(pixels: np.ndarray, size: dict[str, int]) -> np.ndarray:
    """The middle of `(H, W, …)`; a side that is too short gets zeros before and behind, the odd one before."""
    wanted = (size["height"], size["width"])
    missing = [max(0, side - own) for side, own in zip(wanted, pixels.shape[:2], strict=True)]
    if any(missing):
        border = [(-(-count // 2), count // 2) for count in missing] + [(0, 0)] * (pixels.ndim - 2)
        pixels = np.pad(pixels, border)
    top, left = ((own - side) // 2 for side, own in zip(wanted, pixels.shape[:2], strict=True))
    return pixels[top : top + wanted[0], left : left + wanted[1]]


@lru_cache(8)
def _levels(factor: float) -> np.ndarray:
    """What each of 256 levels becomes; rounded once, as NumPy does with a product in float64."""
    return (np.arange(256) * factor).astype(np.float32)


_edge = integer(1, MAX_EDGE)


def _off(name: str, value: Any) -> bool:
    if flag(name, value):
        raise fail(name, value, "false; MobileViT preprocessing has no such step")
    return value


def _size(name: str, value: Any) -> dict[str, int]:
    if type(value) is int:  # legacy files: 288 means the short side, not 288 × 288
        value = {"shortest_edge": value}
    edges = dict(value) if isinstance(value, dict) or hasattr(value, "shortest_edge") else {}
    if set(edges) not in ({"shortest_edge"}, {"height", "width"}):
        raise fail(name, value, 'an integer, {"shortest_edge": …} or {"height": …, "width": …}')
    return {key: _edge(f"{name}.{key}", edge) for key, edge in edges.items()}


def _crop_size(name: str, value: Any) -> dict[str, int]:
    edges = _size(name, value)
    side = edges.get("shortest_edge")
    if side is None:
        return edges
    if type(value) is not int:
        raise fail(name, value, 'an integer or {"height": …, "width": …}')
    return {"height": side, "width": side}


def _filter(name: str, value: Any) -> Image.Resampling:
    if isinstance(value, str) and value in FILTERS:
        return FILTERS[value]
    if isinstance(value, int) and type(value) is not bool and value in FILTERS.values():
        return Image.Resampling(value)
    accepted = ", ".join(f"{int(number)} ({word})" for word, number in sorted(FILTERS.items(), key=lambda f: f[1]))
    raise fail(name, value, f"one of {accepted}")


_POSITIVE = number(0, math.inf, open_low=True, open_high=True)
FIELD_RULES: dict[str, Rule] = {
    "size": _size,
    "crop_size": _crop_size,
    "resample": _filter,
    "rescale_factor": _POSITIVE,
    "image_mean": several(number(-math.inf, math.inf, open_low=True, open_high=True), 3),
    "image_std": several(_POSITIVE, 3),
    "do_resize": flag,
    "do_center_crop": flag,
    "do_rescale": flag,
    "do_normalize": flag,
    "do_convert_rgb": flag,
    "do_flip_channel_order": flag,
    "do_flip_channels": flag,
    "do_reduce_labels": flag,
    "do_pad": _off,
    "default_to_square": _off,
}


def checked_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Checks the fields that have a rule; drops the rest, None, and what has no effect on pixels.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names the field.
    """
    fields = {name: rule(name, values[name]) for name, rule in FIELD_RULES.items() if values.get(name) is not None}
    flip = fields.pop("do_flip_channels", None)
    if flip is not None and fields.setdefault("do_flip_channel_order", flip) != flip:
        raise fail("do_flip_channels", flip, "the same as do_flip_channel_order, its newer name")
    mean, std = fields.pop("image_mean", [0, 0, 0]), fields.pop("image_std", [1, 1, 1])
    # Files saved by transformers carry a mean of 0.5 that its own MobileViT processor never applies.
    if fields.pop("do_normalize", False) and (any(mean) or std != [1, 1, 1]):
        raise fail("do_normalize", True, "false; MobileViT networks take [0, 1] without mean and deviation")
    return fields


def preprocessing_from(values: dict[str, Any]) -> Preprocessing:
    """The settings that checked fields mean; what they leave out has its default."""
    return Preprocessing(**{name: values[name] for name in Preprocessing.__dataclass_fields__ if name in values})


def preprocessing_for(
    resize: int, crop: int | None, interpolation: str, channel_order: str, *, keep_aspect: bool = True
) -> dict[str, Any]:
    """The fields of the preprocessing that a record of `mobilevit_hub.presets` describes.

    Args:
        resize: Short side after resizing, in pixels; both sides unless `keep_aspect`.
        crop: Side of the centre crop in pixels; None keeps the whole picture.
        interpolation: `"bilinear"` or `"bicubic"`.
        channel_order: `"bgr"` or `"rgb"`, what the checkpoint takes.
        keep_aspect: Whether the resize keeps the aspect.

    Raises:
        ConfigError: A value is not accepted; the message names it.
    """
    resize = _edge("resize", resize)
    return checked_fields({
        "size": {"shortest_edge": resize} if keep_aspect else {"height": resize, "width": resize},
        "do_center_crop": crop is not None,
        "crop_size": resize if crop is None else _edge("crop", crop),
        "resample": one_of("bilinear", "bicubic")("interpolation", interpolation),
        "do_flip_channel_order": one_of("bgr", "rgb")("channel_order", channel_order) == "bgr",
    })  # fmt: skip


def fields_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checked fields of a checkpoint's preprocessing.

    An alias has those of the presets table, which is checked against Apple's code. A folder or Hub id has those of its
    `preprocessor_config.json` or, from timm, of its `pretrained_cfg`; without either, Apple's rule counts, and a
    `MobileViTHubWarning` says so.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names the field.
    """
    preset = checkpoint.preset
    if preset is not None and not preset.folder:
        return fields_of_preset(preset)
    if checkpoint.is_timm:
        return _fields_of_timm(checkpoint)
    if checkpoint.processor_data is not None:
        return fields_of_file(checkpoint.processor_data, checkpoint.config_file.with_name(PROCESSOR_FILE))
    values = config_values(checkpoint)
    fields = fields_by_rule(values.get("model_type"), values.get("image_size", 256))
    warnings.warn(
        f"{checkpoint.name}: has no preprocessor_config.json; using Apple's rule for {values.get('model_type')}: short "
        f"side {fields['size']['shortest_edge']}, crop {fields['crop_size']['height']}, "
        f"{preprocessing_from(fields).channel_order.upper()}.",
        MobileViTHubWarning,
        stacklevel=3,
    )
    return fields


def fields_by_rule(model_type: Any, image_size: Any) -> dict[str, Any]:
    """The preprocessing by Apple's rule for a version and image size, for weights that come without their own."""
    size = max(image_size) if isinstance(image_size, list | tuple) else image_size
    bgr = model_type == "mobilevit"
    return preprocessing_for(evaluation_resize(size), size, "bilinear" if bgr else "bicubic", "bgr" if bgr else "rgb")


def fields_of_preset(preset: Preset) -> dict[str, Any]:
    """The preprocessing that the record of a published checkpoint states."""
    return preprocessing_for(
        preset.resize, preset.crop, preset.interpolation, preset.channel_order, keep_aspect=preset.keep_aspect
    )


def fields_of_file(data: Any, path: Any = PROCESSOR_FILE) -> dict[str, Any]:
    """The checked fields of a `preprocessor_config.json`, in its present or legacy form.

    A missing size, crop, filter or channel order takes its default, and unknown fields are ignored; a
    `MobileViTHubWarning` says so.

    Args:
        data: Content of the file.
        path: Names the source in errors.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names the field.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a JSON object, found {type(data).__name__}.", path=path)
    warn_of_unknown(data)
    try:
        fields = checked_fields(data)
    except ConfigError as error:
        error.message, error.path = f"{path}: {error.message}", str(path)
        raise
    used = preprocessing_from(fields)
    defaults = {
        "size": f"size {used.size}",
        "crop_size": f"crop_size {used.crop_size}",
        "resample": f"resample {used.interpolation}",
        "do_flip_channel_order": f"channel order {used.channel_order}",
    }
    missing = [text for name, text in defaults.items() if name not in fields]
    if missing:
        warnings.warn(
            f"{path}: some fields are missing, so the defaults are used: {', '.join(missing)}.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    return fields


def unknown_fields(values: dict[str, Any]) -> list[str]:
    """The fields that mean nothing here."""
    return [name for name in values if name not in FIELD_RULES and name not in IGNORED_KEYS]


def warn_of_unknown(values: dict[str, Any]) -> None:
    """Says which fields mean nothing here."""
    if unknown := unknown_fields(values):
        warnings.warn(
            f"Unknown preprocessor fields {', '.join(map(repr, unknown[:5]))} are ignored.",
            MobileViTHubWarning,
            stacklevel=3,
        )


def _fields_of_timm(checkpoint: Checkpoint) -> dict[str, Any]:
    """timm's rule: short side = crop / crop_pct, rounded down. The stem was turned to Apple's order."""
    settings = checkpoint.config_data.get("pretrained_cfg")
    settings = settings if isinstance(settings, dict) else {}
    if settings.get("mean") not in (None, [0, 0, 0]) or settings.get("std") not in (None, [1, 1, 1]):
        raise ConfigError(
            f"{checkpoint.config_file}: pretrained_cfg subtracts mean {settings.get('mean')!r} and divides by std "
            f"{settings.get('std')!r}; images of a MobileViT are scaled to [0, 1] and nothing else.",
            path=checkpoint.config_file,
            field="pretrained_cfg",
        )
    try:
        crop = int(settings["input_size"][-1])
        resize = int(crop / float(settings.get("crop_pct", 0.9)))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{checkpoint.config_file}: pretrained_cfg has no usable input_size and crop_pct.",
            path=checkpoint.config_file,
            field="pretrained_cfg",
        ) from error
    order = "bgr" if config_values(checkpoint)["model_type"] == "mobilevit" else "rgb"
    return preprocessing_for(resize, crop, settings.get("interpolation", "bicubic"), order)
