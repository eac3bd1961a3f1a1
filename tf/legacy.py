"""Finds `tf_model.h5`, the weights file of the MobileViT classes that transformers 4 had for TensorFlow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub import checkpoints, hub
from mobilevit_hub.checkpoints import Checkpoint
from mobilevit_hub.errors import MissingDependencyError, NotFoundError, OfflineError
from mobilevit_hub.h5_files import read_h5
from mobilevit_hub.hub import KERAS_FILE
from mobilevit_hub.tensors import check_values


def open_checkpoint(name: str, **places: Any) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Opens a checkpoint as `checkpoints.open_checkpoint` does, or through its `tf_model.h5`.

    The old file is taken where there is no other, and where the other is a `pytorch_model.bin` and PyTorch
    is not installed.

    Args:
        name: An alias, a folder, or a Hub id.
        places: Options of `checkpoints.find_checkpoint`.

    Returns:
        The checkpoint, its config, and its tensors by our names.

    Raises:
        SourceError, ConfigError, CheckpointError: See `checkpoints.open_checkpoint`.
        MissingDependencyError: There is only a `pytorch_model.bin`, and PyTorch is not installed.
    """
    try:
        return checkpoints.open_checkpoint(name, **places)
    except (NotFoundError, OfflineError, MissingDependencyError) as error:
        checkpoint = checkpoints.find_checkpoint(name, **places)
        if isinstance(error, OfflineError):  # the cache may still hold the old file
            places["local_files_only"] = True
        weights_file = _find_old_file(checkpoint, places)
        if weights_file is None:
            raise
    checkpoint = replace(checkpoint, find_weights=lambda: weights_file)
    tensors = read_h5(weights_file)
    check_values(tensors, weights_file)
    return checkpoint, checkpoints.load_config(checkpoint), tensors


def _find_old_file(checkpoint: Checkpoint, places: dict[str, Any]) -> Path | None:
    """The `tf_model.h5` in the folder or repository of a checkpoint; None where there is none."""
    folder = Path(checkpoint.name).expanduser()
    if checkpoint.preset is None and folder.is_dir():
        return folder / KERAS_FILE if (folder / KERAS_FILE).is_file() else None
    repo_id = checkpoint.preset.hub_id if checkpoint.preset else checkpoint.name
    with suppress(NotFoundError, OfflineError):
        return hub.fetch(repo_id, KERAS_FILE, places) if repo_id else None
    return None
