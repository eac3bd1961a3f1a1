"""`MobileViTImageProcessor`: from any image source to the `pixel_values` that a checkpoint was trained with.

A thin subclass of transformers' PIL processor, so the published `preprocessor_config.json` files give
bit-identical pixels, with three differences: every image goes through `load_image`, the settings are
checked, and the legacy key `do_flip_channels` is obeyed, which transformers ignores.

The steps: short side to `size`, scale to [0, 1], centre crop, RGB → BGR if the checkpoint wants it.
Nothing is normalised; `image_mean` 0 and `image_std` 1 say so to scripts that ask.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from .errors import ConfigError, ImageError, InputError, MobileViTHubWarning
from .images import check_resize, load_image
from .json_files import read_json
from .rules import fail, flag

MAX_EDGE = 4096
FILTERS = {name.lower(): value for name, value in PILImageResampling.__members__.items()}
LAYOUTS = {"channels_first": "CHW", "channels_last": "HWC"}

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


# --------------------------------------------------------------------------------------------------
# Field rules
# --------------------------------------------------------------------------------------------------


def _off(name: str, value: Any) -> bool:
    if flag(name, value):
        raise fail(name, value, "false; MobileViT preprocessing has no such step")
    return value


def _edge(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_EDGE:
        raise fail(name, value, f"an integer from 1 to {MAX_EDGE}")
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


def _filter(name: str, value: Any) -> PILImageResampling:
    if isinstance(value, str) and value in FILTERS:
        return FILTERS[value]
    if isinstance(value, int) and type(value) is not bool and value in FILTERS.values():
        return PILImageResampling(value)
    accepted = ", ".join(f"{int(number)} ({word})" for word, number in sorted(FILTERS.items(), key=lambda f: f[1]))
    raise fail(name, value, f"one of {accepted}")


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise fail(name, value, "a finite number")
    return value


def _positive(name: str, value: Any) -> float:
    if _number(name, value) <= 0:
        raise fail(name, value, "a finite number above 0")
    return value


def _three(rule: Callable[[str, Any], float]) -> Callable[[str, Any], list[float]]:
    def check(name: str, value: Any) -> list[float]:
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise fail(name, value, "a list of 3 numbers, one for each channel")
        return [rule(f"{name}[{i}]", entry) for i, entry in enumerate(value)]

    return check


FIELD_RULES: dict[str, Callable[[str, Any], Any]] = {
    "size": _size,
    "crop_size": _crop_size,
    "resample": _filter,
    "rescale_factor": _positive,
    "image_mean": _three(_number),
    "image_std": _three(_positive),
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


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Checks the fields that have a rule; drops the rest, None, and what has no effect on pixels."""
    fields = {name: rule(name, values[name]) for name, rule in FIELD_RULES.items() if values.get(name) is not None}
    flip = fields.pop("do_flip_channels", None)
    if flip is not None and fields.setdefault("do_flip_channel_order", flip) != flip:
        raise fail("do_flip_channels", flip, "the same as do_flip_channel_order, its newer name")
    mean, std = fields.pop("image_mean", [0, 0, 0]), fields.pop("image_std", [1, 1, 1])
    # Files saved by transformers carry a mean of 0.5 that its own MobileViT processor never applies.
    if fields.pop("do_normalize", False) and (any(mean) or std != [1, 1, 1]):
        raise fail("do_normalize", True, "false; MobileViT networks take [0, 1] without mean and deviation")
    return fields


# --------------------------------------------------------------------------------------------------
# The processor
# --------------------------------------------------------------------------------------------------


class MobileViTImageProcessor(MobileViTImageProcessorPil):
    """Turns pictures into `pixel_values`; a saved one opens in stock transformers with the same result.

    The defaults are those of the published MobileViT files: short side 288, bilinear, crop 256, BGR.

    Args:
        size: Short side in pixels as an integer or `{"shortest_edge": 288}`, or `{"height", "width"}`
            to change the aspect; 1 to 4096.
        crop_size: Side of the centre crop in pixels, or `{"height", "width"}`. A smaller picture gets
            a black border.
        resample: Filter of the resize: a name (`"bilinear"`, `"bicubic"`, …) or Pillow's number.
        rescale_factor: Factor that takes 0…255 to [0, 1]; default 1/255.
        do_flip_channel_order: Whether the checkpoint takes BGR; `do_flip_channels` in old files.
        do_resize: Whether to resize; likewise `do_center_crop` and `do_rescale`. Default true.
        do_reduce_labels: Whether 0 in segmentation maps means "ignore"; the other labels move down by 1.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names the field.

    Examples:
        >>> processor = MobileViTImageProcessor()
        >>> processor(np.zeros((480, 640, 3), np.uint8), return_tensors="np")["pixel_values"].shape
        (1, 3, 256, 256)
    """

    size = {"shortest_edge": 288}
    crop_size = {"height": 256, "width": 256}
    resample = PILImageResampling.BILINEAR
    image_mean = [0.0, 0.0, 0.0]
    image_std = [1.0, 1.0, 1.0]

    def __init__(self, /, **values: Any) -> None:
        unknown = [name for name in values if name not in FIELD_RULES and name not in IGNORED_KEYS]
        if unknown:
            warnings.warn(
                f"Unknown preprocessor fields {', '.join(map(repr, unknown[:5]))} are ignored.",
                MobileViTHubWarning,
                stacklevel=2,
            )
        super().__init__(**_checked(values))
        self.image_mean, self.image_std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]  # transformers makes tuples of lists
        short, crop = self.size.get("shortest_edge"), max(self.crop_size["height"], self.crop_size["width"])
        if short and self.do_resize and self.do_center_crop and crop > short:
            warnings.warn(
                f"crop_size is {crop} but the short side is resized to {short}: pictures get a black border.",
                MobileViTHubWarning,
                stacklevel=2,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> MobileViTImageProcessor:
        """The preprocessing of a checkpoint by name; see `mobilevit_hub.image_processor`.

        Args:
            pretrained_model_name_or_path: An alias, a folder (one with `preprocessor_config.json` alone
                is enough) or a Hub id.
            options: `revision`, `token`, `cache_dir`, `local_files_only`.
        """
        folder = Path(pretrained_model_name_or_path)
        file = folder / "preprocessor_config.json"
        if file.is_file() and not (folder / "config.json").exists():
            return processor_from_dict(read_json(file), file)
        # It imports this module.
        return import_module(f"{__package__}.runtimes").image_processor(pretrained_model_name_or_path, **options)

    @property
    def channel_order(self) -> Literal["bgr", "rgb"]:
        """Order of the channels in `pixel_values`."""
        return "bgr" if self.do_flip_channel_order else "rgb"

    @property
    def interpolation(self) -> str:
        """Name of the resize filter, such as `"bilinear"`."""
        return PILImageResampling(self.resample).name.lower()

    def preprocess(self, images: Any, segmentation_maps: Any = None, **options: Any) -> BatchFeature:
        """Processes one picture or a batch; calling the processor does the same.

        Args:
            images: Anything that `load_image` takes, a list of such sources, or a 4-axis array or tensor.
            segmentation_maps: One map of class numbers for each image; they come back as `labels`.
            options: Any argument of the class, for this call only, and
                `input_data_format`: `"channels_last"` (default) or `"channels_first"`, of arrays;
                `data_format`: the same for the result, default `"channels_first"`;
                `return_tensors`: `"np"`, `"pt"` or None for a list of arrays.

        Returns:
            `pixel_values`, float32 in [0, 1], `(B, 3, H, W)` or `(B, H, W, 3)`.

        Raises:
            ImageError: A picture cannot be used; in a batch the message starts with its index.
            InputError: A source or option is not accepted, the batch is empty, or tensors are asked
                for and the results differ in size.
        """
        array_layout = _layout(options.pop("input_data_format", None), "channels_last", "input_data_format")
        layout = _layout(options.pop("data_format", None), "channels_first", "data_format")
        return_tensors = options.pop("return_tensors", None)
        fields = _checked(options)
        options = {name: value for name, value in options.items() if name not in FIELD_RULES}

        do_resize, size = fields.get("do_resize", self.do_resize), fields.get("size", self.size)
        pictures = []
        for index, source in enumerate(batch := _as_batch(images)):
            try:
                picture = load_image(source, data_format=array_layout)
                if do_resize and (short := size.get("shortest_edge")):
                    check_resize(picture.width, picture.height, short)
            except (ImageError, InputError) as error:
                if len(batch) > 1:
                    error.message = f"Image {index} of {len(batch)}: {error.message}"
                error.field = f"images[{index}]"
                raise
            pictures.append(picture)

        result = super().preprocess(pictures, segmentation_maps, **fields, **options)
        pixel_values = result["pixel_values"]
        if layout == "HWC":
            pixel_values = [np.moveaxis(values, 0, -1) for values in pixel_values]
        # The flip leaves negative strides, which torch.from_numpy refuses.
        result["pixel_values"] = [np.ascontiguousarray(values) for values in pixel_values]
        shapes = {values.shape for values in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise InputError(
                f"The processed images differ in size ({', '.join(map(str, sorted(shapes)))}), so they do not fit "
                "one tensor; process them one at a time, or with a centre crop.",
                field="images",
            )
        return result.convert_to_tensors(return_tensors)

    def reduce_label(self, image: np.ndarray) -> np.ndarray:
        """Moves labels down by 1 and 0 to 255; unlike in transformers, the caller's array stays as it is."""
        return super().reduce_label(image.copy())


def _layout(value: Any, default: str, name: str) -> str:
    layout = LAYOUTS.get(getattr(value, "value", value) or default)
    if layout is None:
        raise InputError(f"{name} is {value!r}; expected 'channels_first' or 'channels_last'.", field=name, found=value)
    return layout


def _as_batch(images: Any) -> list[Any]:
    many = isinstance(images, list | tuple) or getattr(images, "ndim", None) == 4
    batch = list(images) if many else [images]
    if not batch:
        raise InputError("The batch of images is empty; expected at least one.", field="images")
    return batch


# --------------------------------------------------------------------------------------------------
# Building one
# --------------------------------------------------------------------------------------------------


def processor_for(
    resize: int, crop: int | None, interpolation: str, channel_order: str, *, keep_aspect: bool = True
) -> MobileViTImageProcessor:
    """Builds the processor that a record of `mobilevit_hub.presets` describes.

    Args:
        resize: Short side after resizing, in pixels; both sides unless `keep_aspect`.
        crop: Side of the centre crop in pixels; None keeps the whole picture.
        interpolation: `"bilinear"` or `"bicubic"`.
        channel_order: `"bgr"` or `"rgb"`, what the checkpoint takes.
        keep_aspect: Whether the resize keeps the aspect.

    Raises:
        ConfigError: A value is not accepted; the message names it.
    """
    if interpolation not in ("bilinear", "bicubic"):
        raise fail("interpolation", interpolation, "'bilinear' or 'bicubic'")
    if channel_order not in ("bgr", "rgb"):
        raise fail("channel_order", channel_order, "'bgr' or 'rgb'")
    resize = _edge("resize", resize)
    return MobileViTImageProcessor(
        size={"shortest_edge": resize} if keep_aspect else {"height": resize, "width": resize},
        do_center_crop=crop is not None,
        crop_size=resize if crop is None else _edge("crop", crop),
        resample=interpolation,
        do_flip_channel_order=channel_order == "bgr",
    )


def processor_from_dict(data: dict[str, Any], path: Any = "preprocessor_config.json") -> MobileViTImageProcessor:
    """Builds a processor from the content of a `preprocessor_config.json`, in its present or legacy form.

    A missing size, crop, filter or channel order takes the default of `MobileViTImageProcessor`, with
    a `MobileViTHubWarning` that says so.

    Args:
        data: Content of the file.
        path: Names the source in errors.

    Raises:
        ConfigError: A value is of the wrong type or out of range; the message names the field.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a JSON object, found {type(data).__name__}.", path=path)
    try:
        processor = MobileViTImageProcessor(**data)
    except ConfigError as error:
        error.message, error.path = f"{path}: {error.message}", str(path)
        raise
    defaults = {
        "size": f"size {dict(processor.size)}",
        "crop_size": f"crop_size {dict(processor.crop_size)}",
        "resample": f"resample {processor.interpolation}",
        "do_flip_channel_order": f"channel order {processor.channel_order}",
    }
    if data.get("do_flip_channels") is not None:
        del defaults["do_flip_channel_order"]
    missing = [text for name, text in defaults.items() if data.get(name) is None]
    if missing:
        warnings.warn(
            f"{path}: some fields are missing, so the defaults are used: {', '.join(missing)}.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    return processor
