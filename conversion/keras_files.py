"""Weights in and out of the files that Keras writes of our own models: `.keras` and `.weights.h5`."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.configuration import config_from_dict
from mobilevit_hub.errors import CheckpointError, require
from mobilevit_hub.h5_files import check_weights_h5, inspect_keras
from mobilevit_hub.names import tensor_shapes
from mobilevit_hub.presets import get_preset
from mobilevit_hub.runtimes import from_pretrained, model_class

from .recognition import backbones, config_of

_WEIGHTS = "model.weights.h5"
# Task -> how the names of its classes end; the shortest last, which is the end of no other.
_TASKS = {"image-classification": "ForImageClassification", "backbone": "Backbone", "features": "Model"}


def read_keras(file: Path, config: Any = None) -> tuple[dict[str, np.ndarray], Any]:
    """Reads one of our own Keras models. The model is built by this package's code, never by what the file says.

    Args:
        file: A `.keras` or `.weights.h5` file.
        config: What the network is; a `.keras` file says it itself. Default for `.weights.h5`: the published
            network with these shapes.

    Returns:
        The tensors by our names, and the config.

    Raises:
        CheckpointError: The file is damaged, unsafe, or of another model.
        MissingDependencyError: Keras is not installed.
    """
    require("keras", "tf", f"Reading {file.name}")
    task = "image-classification"
    with tempfile.TemporaryDirectory() as folder:
        weights = file
        if file.suffix == ".keras":
            content = inspect_keras(file)
            config = config_from_dict(content["config"]["config"], file)
            task = next(t for t in _TASKS if content["class_name"].endswith(_TASKS[t]))
            weights = Path(folder, _WEIGHTS)
            with zipfile.ZipFile(file) as archive:
                weights.write_bytes(archive.read(_WEIGHTS))
        # A compiled model's optimizer stands there as well, and the random states of dropout.
        shapes = {
            name: shape
            for name, shape in check_weights_h5(weights).items()
            if name.startswith("layers/") and "seed_generator" not in name
        }
        config = config or _recognise(shapes, file)
        model = model_class(config.model_type, "tf", task)(config)
        found, expected = len(shapes), len(model.named_weights())
        try:
            model.load_weights(weights)
        except Exception as error:  # Keras raises nearly anything on files of other models
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{file}: the weights do not fit {type(model).__name__}: {reason}", path=file
            ) from error
    if found != expected:
        raise CheckpointError(
            f"{file}: holds {found} tensors, but {type(model).__name__} has {expected}.",
            path=file,
            found=found,
            expected=expected,
        )
    return model.checkpoint_tensors(), config


def keras_bytes(folder: Path, ending: str) -> bytes:
    """The content of a Keras file of a checkpoint.

    Args:
        folder: The checkpoint.
        ending: `".keras"` or `".weights.h5"`.
    """
    model = from_pretrained(folder, framework="tf")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "model" + ending)
        if ending == ".keras":
            model.save(file)
        else:
            model.save_weights(file)
        return file.read_bytes()


def _recognise(shapes: dict[str, tuple[int, ...]], file: Path) -> Any:
    """The published classifier whose encoder has these shapes, in any order of axes."""
    found = Counter(tuple(sorted(shape)) for shape in shapes.values())
    for backbone in backbones():
        config = config_of(get_preset(backbone))
        wanted = Counter(tuple(sorted(shape)) for shape in tensor_shapes(config, None).values())
        kernel, *rest = sorted((found - wanted).elements(), key=len, reverse=True) or [()]
        if wanted <= found and len(kernel) == 2 and len(rest) == 1:
            return config_of(get_preset(backbone), num_labels=rest[0][0])
    raise CheckpointError(
        f"{file}: holds the shapes of no published classifier. For another network, pass its folder or config.json "
        "as model (--model).",
        path=file,
    )
