"""One way to open a checkpoint and to run it on images, whatever runs it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .architecture import FRAMEWORKS
from .checkpoints import PLACES, Checkpoint, find_checkpoint, load_config
from .errors import ConfigError, InputError, MobileViTHubWarning, require
from .image_processing import MobileViTImageProcessor, processor_for, processor_from_dict
from .prediction import predict_each, softmax
from .presets import Preset, find_preset
from .recipes import evaluation_resize

TASKS = ("image-classification", "features", "backbone")
_CLASS_ENDINGS = {"image-classification": "ForImageClassification", "features": "Model", "backbone": "Backbone"}


def check_framework(framework: str, field: str = "framework") -> None:
    """Raises `InputError` unless `framework` is one of `FRAMEWORKS`; `field` is what the user called it."""
    if framework not in FRAMEWORKS:
        raise InputError(
            f"{field} is {framework!r}; expected one of {', '.join(FRAMEWORKS)}.", field=field, found=framework
        )


def model_class(model_type: str, framework: str = "pt", task: str = "image-classification") -> Any:
    """The model class of a version, framework and task.

    Args:
        model_type: `"mobilevit"` or `"mobilevitv2"`.
        framework: `"pt"` for PyTorch, `"tf"` for Keras.
        task: `"image-classification"`, `"features"` or `"backbone"`.
    """
    check_framework(framework)
    name = class_name(model_type, task)
    if framework == "tf":
        require("keras", "tf", "Opening a Keras model")
        return getattr(import_module("mobilevit_hub.tf"), f"TF{name}")
    require("torch", "torch", "Opening a PyTorch model")
    return getattr(import_module("mobilevit_hub.pt"), name)


def class_name(model_type: str, task: str) -> str:
    """Name of a PyTorch model class; the Keras ones begin with `TF` before it. Arguments as for `model_class`."""
    if task not in TASKS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(TASKS)}.", field="task")
    return {"mobilevit": "MobileViT", "mobilevitv2": "MobileViTV2"}[model_type] + _CLASS_ENDINGS[task]


def from_pretrained(
    name: str | Path,
    *,
    framework: str = "pt",
    task: str = "image-classification",
    optimize: bool = False,
    **options: Any,
) -> Any:
    """Opens a checkpoint by name; the class is chosen from the checkpoint.

    Args:
        name: An alias such as `"mobilevit-s"`, a folder, or a Hub id.
        framework: `"pt"` for PyTorch, `"tf"` for Keras.
        task: `"image-classification"`, `"features"` (no classifier) or `"backbone"` (feature maps).
        optimize: Whether to return the inference form of a classifier, several times as fast and not to be trained:
            `model.optimize_for_inference()` in PyTorch, `model.fuse()` in Keras.
        options: As for the class's own `from_pretrained`: `num_labels`, `id2label`, `revision`, …

    Returns:
        A model in evaluation mode.

    Examples:
        >>> import mobilevit_hub as mh
        >>> model = mh.from_pretrained("mobilevit-xxs-tiny-imagenet")
        >>> model.config.num_labels
        200
    """
    config = options.get("config") or load_config(find_checkpoint(name, **_places(options)))
    model = model_class(config.model_type, framework, task).from_pretrained(name, **options)
    if not optimize:
        return model
    return model.fuse() if framework == "tf" else model.optimize_for_inference()


def _places(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in PLACES if name in options}


def parameter_count(network: Any) -> int:
    """Number of trainable values of a network of either framework; statistics of norms do not count."""
    weights = network.parameters() if hasattr(network, "parameters") else network.trainable_variables
    return sum(math.prod(weight.shape) for weight in weights)


def image_processor(name: str | Path, **options: Any) -> MobileViTImageProcessor:
    """The preprocessing of a checkpoint: resize, crop, filter, channel order.

    An alias uses the presets table, which is checked against Apple's code. A folder or Hub id uses
    its `preprocessor_config.json` or, for timm, its `pretrained_cfg`.

    Args:
        name: As for `from_pretrained`.
        options: `revision`, `token`, `cache_dir`, `local_files_only`.
    """
    preset = None if "/" in str(name) else find_preset(str(name))
    if preset is not None and not preset.folder:
        return processor_of_preset(preset)  # needs no network
    return processor_of(find_checkpoint(name, **options))


def processor_of(checkpoint: Checkpoint) -> MobileViTImageProcessor:
    """The preprocessing of a checkpoint whose files are at hand."""
    preset = checkpoint.preset
    if preset is not None and not preset.folder:
        return processor_of_preset(preset)
    if checkpoint.is_timm:
        return _processor_of_timm(checkpoint)
    if checkpoint.processor_data is not None:
        return processor_from_dict(
            checkpoint.processor_data, checkpoint.config_file.with_name("preprocessor_config.json")
        )
    config = load_config(checkpoint)
    processor = processor_of_config(config)
    warnings.warn(
        f"{checkpoint.name}: has no preprocessor_config.json; using Apple's rule for {config.model_type}: short side "
        f"{processor.size['shortest_edge']}, crop {processor.crop_size['height']}, {processor.channel_order.upper()}.",
        MobileViTHubWarning,
        stacklevel=3,
    )
    return processor


def processor_of_config(config: Any) -> MobileViTImageProcessor:
    """The preprocessing by Apple's rule for a version and image size, for weights that come without their own."""
    size = config.image_size if isinstance(config.image_size, int) else max(config.image_size)
    bgr = config.model_type == "mobilevit"
    return processor_for(evaluation_resize(size), size, "bilinear" if bgr else "bicubic", "bgr" if bgr else "rgb")


def processor_of_preset(preset: Preset) -> MobileViTImageProcessor:
    """The preprocessing that the record of a published checkpoint states."""
    return processor_for(
        preset.resize, preset.crop, preset.interpolation, preset.channel_order, keep_aspect=preset.keep_aspect
    )


def _processor_of_timm(checkpoint: Checkpoint) -> MobileViTImageProcessor:
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
    order = "bgr" if load_config(checkpoint).model_type == "mobilevit" else "rgb"
    return processor_for(resize, crop, settings.get("interpolation", "bicubic"), order)


class Classifier:
    """A checkpoint ready to classify: model, processor and labels.

    Args:
        model: Name of the checkpoint.
        runtime: `"pt"` for PyTorch, `"tf"` for Keras.
        options: As for `from_pretrained`.
    """

    def __init__(self, model: str | Path, *, runtime: str = "pt", **options: Any) -> None:
        check_framework(runtime, "runtime")
        self.processor = image_processor(model, **_places(options))
        self.runtime = runtime
        self.model = from_pretrained(model, framework=runtime, optimize=True, **options)
        self.labels: dict[int, str] = self.model.config.id2label

    def prepare(self, image: Any) -> np.ndarray:
        """Maps an image to what `probabilities` takes: a batch of one."""
        layout = "channels_last" if self.runtime == "tf" else "channels_first"
        return self.processor(image, return_tensors="np", data_format=layout)["pixel_values"]

    def probabilities(self, pixel_values: np.ndarray) -> np.ndarray:
        """Maps processed images, `(B, 3, H, W)` or in Keras `(B, H, W, 3)`, to probabilities `(B, num_labels)`."""
        if self.runtime == "tf":
            return softmax(self.model.predict(pixel_values))
        import torch

        logits = self.model(torch.from_numpy(pixel_values)).logits
        return logits.softmax(dim=-1).numpy()

    def predict(self, images: Iterable[Any], *, top_k: int = 5) -> Iterator[dict[str, Any]]:
        """Classifies images one by one; see `mobilevit_hub.predict` for what is yielded."""
        return predict_each(self, images, top_k)
