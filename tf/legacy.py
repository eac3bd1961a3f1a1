"""Finds `tf_model.h5`, the weights file of the MobileViT classes that transformers 4 had for TensorFlow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints import loading
from mobilevit_hub.checkpoints.h5_files import read_h5
from mobilevit_hub.checkpoints.tensors import check_values
from mobilevit_hub.errors import MissingDependencyError, NotFoundError, OfflineError
from mobilevit_hub.hub.download import KERAS_FILE
from mobilevit_hub.hub.find import Checkpoint, find_checkpoint
from mobilevit_hub.network.configuration import load_config


def open_checkpoint(name: str | Path | Checkpoint, **places: Any) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Opens a checkpoint as `checkpoints.loading.open_checkpoint` does, or through its `tf_model.h5`.

    The old file is taken where there is no other, and where the other is a `pytorch_model.bin` and PyTorch
    is not installed.

    Args:
        name: An alias, a folder, or a Hub id.
        places: Options of `hub.find.find_checkpoint`.

    Returns:
        The checkpoint, its config, and its tensors by our names.

    Raises:
        SourceError, ConfigError, CheckpointError: See `checkpoints.loading.open_checkpoint`.
        MissingDependencyError: There is only a `pytorch_model.bin`, and PyTorch is not installed.
    """
    checkpoint = find_checkpoint(name, **places)
    try:
        return loading.open_checkpoint(checkpoint)
    except (NotFoundError, OfflineError, MissingDependencyError) as error:
        weights_file = None
        # Without a network the cache may still hold the old file.
        how = {"local_files_only": True} if isinstance(error, OfflineError) else {}
        with suppress(NotFoundError, OfflineError):
            weights_file = checkpoint.find_file(KERAS_FILE, **how)
        if weights_file is None:
            raise
    tensors = read_h5(weights_file)
    check_values(tensors, weights_file)
    return replace(checkpoint, weights=weights_file), load_config(checkpoint), tensors
