"""From a name to a network and its tensors, without transformers and without a framework."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..hub.find import SAVE_ID, Checkpoint, config_values, find_checkpoint
from ..network.fields import network_of
from ..network.names import SCHEMES, renames, to_ours
from .tensors import check_values, read_tensors


def read_checkpoint(name: str | Path | Checkpoint, **places: Any) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Finds a checkpoint and reads its config and its weights, which belong to the same save.

    Args:
        name: As for `find_checkpoint`.
        places: Options of `find_checkpoint`.

    Returns:
        The checkpoint, its network as `read_network` gives it, and its tensors by our names.

    Raises:
        SourceError, ConfigError: See `find_checkpoint`.
        CheckpointError: See `load_tensors`.
    """
    checkpoint = find_checkpoint(name, **places)
    for pause in (0.05, 0.05, 0.05, None):
        config = read_network(checkpoint)
        try:
            return checkpoint, config, load_tensors(checkpoint, config)
        except CheckpointError as error:
            # Somebody may be between renaming the weights and renaming the config: read both again.
            if error.field != SAVE_ID or pause is None:
                raise
            time.sleep(pause)
            checkpoint = checkpoint.read_again()
    raise AssertionError  # pragma: no cover - the last round returns or raises


def read_network(checkpoint: Checkpoint) -> Any:
    """The `network.fields.Network` of a checkpoint, or its config where there is something to say about its file."""
    values = config_values(checkpoint)
    network = network_of(values)
    if network is None:
        from ..network.configuration import config_from_dict  # which imports transformers

        network = config_from_dict(values, checkpoint.config_file)
    return network


def load_tensors(checkpoint: Checkpoint, config: Any) -> dict[str, np.ndarray]:
    """Reads a checkpoint's weights under our names, and checks their values.

    Raises:
        CheckpointError: The file is damaged or unsafe, its values cannot be weights, or weights and
            config come from different saves.
    """
    tensors, metadata = read_tensors(checkpoint.weights_file)
    check_save_id(checkpoint, metadata)
    check_values(tensors, checkpoint.weights_file)
    if checkpoint.is_timm:
        tensors = to_ours(tensors, renames(config, "timm"), checkpoint.weights_file, SCHEMES["timm"].title)
    return tensors


def check_save_id(checkpoint: Checkpoint, metadata: dict[str, str]) -> None:
    """Raises `CheckpointError` when weights with this metadata and a checkpoint's config are of different saves."""
    expected, found = checkpoint.config_data.get(SAVE_ID), metadata.get(SAVE_ID)
    if expected is not None and found is not None and found != expected:
        raise CheckpointError(
            f"{checkpoint.weights_file.parent}: weights and config come from different saves; save the checkpoint "
            "again.",
            path=checkpoint.weights_file,
            field=SAVE_ID,
            found=found,
            expected=expected,
        )
