"""One way to open a checkpoint and to run it on images, whatever runs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoints.fitting import fit_tensors
from .checkpoints.reading import read_checkpoint, read_network
from .choices import check_framework
from .errors import InputError, require
from .hub.find import PLACES, Checkpoint, find_checkpoint
from .images.loading import load_image
from .images.preparing import fields_of, prepare, preprocessing_from
from .inference.folding import fold
from .network.structure import tensor_shapes
from .tasks.classification import predict_each, softmax

_CLASS_ENDINGS = {"image-classification": "ForImageClassification", "features": "Model", "backbone": "Backbone"}


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


def trainer(framework: str) -> Any:
    """The module that trains in a framework: its `fit(run)`, and in Keras `check()`."""
    if framework == "tf":
        return import_module("mobilevit_hub.tf.training.fit")
    return import_module("mobilevit_hub.pt.training.fit")


def class_name(model_type: str, task: str) -> str:
    """Name of a PyTorch model class; the Keras ones begin with `TF` before it. Arguments as for `model_class`."""
    if task not in _CLASS_ENDINGS:
        raise InputError(f"task is {task!r}; expected one of {', '.join(_CLASS_ENDINGS)}.", field="task")
    return {"mobilevit": "MobileViT", "mobilevitv2": "MobileViTV2"}[model_type] + _CLASS_ENDINGS[task]


def from_pretrained(
    name: str | Path | Checkpoint,
    *,
    framework: str = "pt",
    task: str = "image-classification",
    optimize: bool = False,
    **options: Any,
) -> Any:
    """Opens a checkpoint by name; the class is chosen from the checkpoint.

    Args:
        name: An alias such as `"mobilevit-s"`, a folder, a Hub id, or what `hub.find.find_checkpoint` found.
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
    checkpoint = find_checkpoint(name, **_places(options))
    if optimize and task == "image-classification" and set(options) <= set(PLACES):
        return inference_form(checkpoint, framework)
    version = getattr(options.get("config"), "model_type", None) or read_network(checkpoint).model_type
    model = model_class(version, framework, task).from_pretrained(checkpoint, **options)
    if not optimize:
        return model
    return model.fuse() if framework == "tf" else model.optimize_for_inference()


def inference_form(checkpoint: Checkpoint, framework: str) -> Any:
    """The inference form of a classifier from its files alone: no trainable network is built.

    Returns:
        A `pt.inference.InferenceModel` or `tf.inference.FusedModel`.
    """
    check_framework(framework)
    if framework == "tf":
        require("keras", "tf", "Opening a Keras model")
        form = import_module("mobilevit_hub.tf.inference.model").FusedModel
        reader = import_module("mobilevit_hub.tf.legacy").open_checkpoint
    else:
        require("torch", "torch", "Opening a PyTorch model")
        form, reader = import_module("mobilevit_hub.pt.inference.model").InferenceModel, read_checkpoint
    checkpoint, network, tensors = reader(checkpoint)
    tensors, _ = fit_tensors(
        tensors,
        tensor_shapes(network),
        path=checkpoint.weights_file,
        model_name="TF" * (framework == "tf") + class_name(network.model_type, "image-classification"),
        prefix=network.model_type,
    )
    return form(fold(network, tensors))


def _places(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in PLACES if name in options}


def parameter_count(network: Any) -> int:
    """Number of trainable values of a network of either framework; statistics of norms do not count."""
    weights = network.parameters() if hasattr(network, "parameters") else network.trainable_variables
    return sum(math.prod(weight.shape) for weight in weights)


class Classifier:
    """A checkpoint ready to classify: model, preprocessing and labels.

    Args:
        model: Name of the checkpoint, or what `hub.find.find_checkpoint` found.
        runtime: `"pt"` for PyTorch, `"tf"` for Keras.
        options: As for `from_pretrained`.
    """

    def __init__(self, model: str | Path | Checkpoint, *, runtime: str = "pt", **options: Any) -> None:
        check_framework(runtime, "runtime")
        checkpoint = find_checkpoint(model, **_places(options))
        self.preprocessing = preprocessing_from(fields_of(checkpoint))
        self.runtime = runtime
        self.model = from_pretrained(checkpoint, framework=runtime, optimize=True, **options)
        self.labels: dict[int, str] = self.model.labels

    def prepare(self, image: Any) -> np.ndarray:
        """Maps an image to what `probabilities` takes: a batch of one."""
        return prepare(load_image(image), self.preprocessing, channels_last=self.runtime == "tf")[None]

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
