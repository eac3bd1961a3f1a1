"""`MobileViTImageProcessor`: the preprocessing of a checkpoint as transformers' users know it.

A thin image processor over the functions of `preparing`; a saved one opens in stock transformers with the same result,
and the published `preprocessor_config.json` files give the same bits. It differs from transformers' in three things:
every image goes through `load_image`, the settings are checked, and the legacy key `do_flip_channels` is obeyed, which
transformers ignores. `image_mean` 0 and `image_std` 1 say to scripts that ask that nothing is normalised.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from ..errors import ImageError, InputError, MobileViTHubWarning
from ..hub.download import PROCESSOR_FILE
from ..hub.find import Checkpoint, find_checkpoint
from ..hub.presets import find_preset
from ..json_files import read_json
from .loading import load_image
from .preparing import (
    Preprocessing,
    checked_fields,
    fields_by_rule,
    fields_of,
    fields_of_file,
    fields_of_preset,
    prepare,
    prepare_map,
    preprocessing_for,
    preprocessing_from,
    unknown_fields,
    warn_of_unknown,
)

LAYOUTS = {"channels_first": "CHW", "channels_last": "HWC"}


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
        warn_of_unknown(values)
        super().__init__(**checked_fields(values))
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
        file = folder / PROCESSOR_FILE
        if file.is_file() and not (folder / "config.json").exists():
            return processor_from_dict(read_json(file), file)
        return image_processor(pretrained_model_name_or_path, **options)

    channel_order, interpolation = Preprocessing.channel_order, Preprocessing.interpolation

    @property
    def settings(self) -> Preprocessing:
        """What of it `preparing.prepare` takes."""
        return preprocessing_from({name: _plain(getattr(self, name, None)) for name in vars(Preprocessing())})

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
        if unknown := unknown_fields(options):
            raise InputError(f"The image processor has no option {unknown[0]!r}.", field=unknown[0])
        changes = checked_fields(options)
        settings = preprocessing_from(vars(self.settings) | changes)

        pixel_values, batch = [], _as_batch(images)
        for index, source in enumerate(batch):
            try:
                picture = load_image(source, data_format=array_layout)
                pixel_values.append(prepare(picture, settings, channels_last=layout == "HWC"))
            except (ImageError, InputError) as error:
                if len(batch) > 1:
                    error.message = f"Image {index} of {len(batch)}: {error.message}"
                error.field = f"images[{index}]"
                raise
        shapes = {values.shape for values in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise InputError(
                f"The processed images differ in size ({', '.join(map(str, sorted(shapes)))}), so they do not fit "
                "one tensor; process them one at a time, or with a centre crop.",
                field="images",
            )
        data: dict[str, Any] = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            reduce_labels = changes.get("do_reduce_labels", bool(self.do_reduce_labels))
            maps = segmentation_maps if isinstance(segmentation_maps, list | tuple) else [segmentation_maps]
            data["labels"] = [prepare_map(labels, settings, reduce_labels=reduce_labels) for labels in maps]
        return BatchFeature(data, tensor_type=return_tensors)


def _plain(value: Any) -> Any:
    """A size of transformers as a dict without its empty fields; anything else as it is."""
    return {k: v for k, v in dict(value).items() if v is not None} if hasattr(value, "shortest_edge") else value


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


def processor_for(
    resize: int, crop: int | None, interpolation: str, channel_order: str, *, keep_aspect: bool = True
) -> MobileViTImageProcessor:
    """Builds a processor from what a record of `mobilevit_hub.presets` says; see `preparing.preprocessing_for`."""
    fields = preprocessing_for(resize, crop, interpolation, channel_order, keep_aspect=keep_aspect)
    return MobileViTImageProcessor(**fields)


def processor_from_dict(data: dict[str, Any], path: Any = PROCESSOR_FILE) -> MobileViTImageProcessor:
    """Builds a processor from the content of a `preprocessor_config.json`; see `preparing.fields_of_file`."""
    return MobileViTImageProcessor(**fields_of_file(data, path))


def processor_of_config(config: Any) -> MobileViTImageProcessor:
    """The preprocessing by Apple's rule for a version and image size, for weights that come without their own."""
    return MobileViTImageProcessor(**fields_by_rule(config.model_type, config.image_size))


def image_processor(name: str | Path | Checkpoint, **options: Any) -> MobileViTImageProcessor:
    """The preprocessing of a checkpoint: resize, crop, filter, channel order; see `preparing.fields_of`.

    Args:
        name: As for `from_pretrained`.
        options: `revision`, `token`, `cache_dir`, `local_files_only`.
    """
    preset = None if isinstance(name, Checkpoint) or "/" in str(name) else find_preset(str(name))
    if preset is not None and not preset.folder:
        return MobileViTImageProcessor(**fields_of_preset(preset))  # needs no network
    return processor_of(find_checkpoint(name, **options))


def processor_of(checkpoint: Checkpoint) -> MobileViTImageProcessor:
    """The preprocessing of a checkpoint whose files are at hand."""
    return MobileViTImageProcessor(**fields_of(checkpoint))
