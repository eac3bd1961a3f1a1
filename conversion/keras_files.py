"""Weights in and out of the files that Keras writes of our own models: `.keras` and `.weights.h5`."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.h5_files import check_weights_h5, inspect_keras
from mobilevit_hub.errors import CheckpointError, require
from mobilevit_hub.files import temporary_folder
from mobilevit_hub.hub.presets import get_preset
from mobilevit_hub.models import class_name, from_pretrained, model_class
from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.network.structure import tensor_shapes

from .recognition import backbones, config_of

_WEIGHTS = "model.weights.h5"


def read_keras(file: Path, config: Any = None) -> tuple[dict[str, np.ndarray], Any, dict[str, Any] | None]:
    """Reads one of our own Keras models. The model is built by this package's code, never by what the file says.

    Args:
        file: A `.keras` or `.weights.h5` file.
        config: What the network is; a `.keras` file says it itself. Default for `.weights.h5`: the published
            network with these shapes.

    Returns:
        The tensors by our names, the config, and the content of `preprocessor_config.json` where the file has it.

    Raises:
        CheckpointError: The file is damaged, unsafe, or of another model.
        MissingDependencyError: Keras is not installed.
    """
    require("keras", "tf", f"Reading {file.name}")
    task, preprocessing = "image-classification", None
    with temporary_folder() as folder:
        weights = file
        if file.suffix == ".keras":
            content = inspect_keras(file)
            config = config_from_dict(content["config"]["config"], file)
            preprocessing = content["config"].get("preprocessing")
            task = _task_of(content["class_name"], config.model_type, file)
            weights = folder / _WEIGHTS
            with zipfile.ZipFile(file) as archive:
                weights.write_bytes(archive.read(_WEIGHTS))
        # A compiled model's optimizer stands there as well, and the random states of dropout.
        shapes = {
            name: shape
            for name, shape in check_weights_h5(weights).items()
            if name.startswith("layers/") and "seed_generator" not in name
        }
        if config is None:
            config = _recognise(shapes, file)
        if not config.num_labels or len(shapes) == len(tensor_shapes(config, None)):
            task = "features"
        model = model_class(config.model_type, "tf", task)(config)
        found, expected = len(shapes), len(model.named_weights())
        if found != expected:
            raise CheckpointError(
                f"{file}: holds {found} tensors, but {type(model).__name__} of this size has {expected}.",
                path=file,
                found=found,
                expected=expected,
            )
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises nearly anything on files of other models
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{file}: the weights do not fit {type(model).__name__}: {reason}", path=file
            ) from error
    return model.checkpoint_tensors(), config, preprocessing


def _task_of(name: str, model_type: str, file: Path) -> str:
    """The task of one of our Keras classes, which must be for the version of its config."""
    tasks = {f"TF{class_name(model_type, task)}": task for task in ("image-classification", "features")}
    if name not in tasks:
        raise CheckpointError(
            f"{file}: holds a {name} with a {model_type} config; expected {' or '.join(tasks)}.",
            path=file,
            found=name,
            expected=list(tasks),
        )
    return tasks[name]


def write_keras(file: Path, folder: Path, *, has_classifier: bool) -> None:
    """Writes a checkpoint, which may be a network without a head, as a `.keras` or `.weights.h5` file."""
    task = "image-classification" if has_classifier else "features"
    model = from_pretrained(folder, framework="tf", task=task)
    (model.save if file.suffix == ".keras" else model.save_weights)(file)


def _recognise(shapes: dict[str, tuple[int, ...]], file: Path) -> Any:
    """The published network whose encoder has these shapes, in any order of axes, and whose classifier the rest is."""
    found = Counter(tuple(sorted(shape)) for shape in shapes.values())
    for backbone in backbones():
        preset = get_preset(backbone)
        wanted = Counter(tuple(sorted(shape)) for shape in tensor_shapes(config_of(preset), None).values())
        if wanted <= found:
            rest = sorted((found - wanted).elements(), key=len)  # a bias and a matrix, when there is a classifier
            if [len(shape) for shape in rest] in ([], [1, 2]):
                return config_of(preset, num_labels=rest[0][0] if rest else 0)
    raise CheckpointError(
        f"{file}: holds the shapes of no published classifier. For another network, pass its folder or config.json "
        "as model (--model).",
        path=file,
    )
