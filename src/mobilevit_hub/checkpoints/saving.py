"""Writing a checkpoint as one folder: weights, config, processor and card, atomically, told apart by an id."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MobileViTHubWarning
from ..files import json_bytes, write_file, write_folder
from ..hub import download as hub
from ..hub.find import SAVE_ID
from ..json_files import parse_json, read_json
from .tensors import check_values, to_safetensors

CARD_FILE = "README.md"


def save_checkpoint(
    folder: str | os.PathLike,
    tensors: dict[str, np.ndarray],
    config: Any,
    *,
    processor: Any = None,
    card: str | None = None,
) -> None:
    """Writes weights, config, processor and card as one folder, atomically and with equal bytes for equal input.

    Args:
        folder: New, or an earlier save of any checkpoint, which is replaced.
        tensors: Weights by our names.
        config: A config of this package.
        processor: An image processor; without one, an existing `preprocessor_config.json` is left alone,
            with a warning when it belongs to another network.
        card: Text of the model card; likewise.

    Raises:
        CheckpointError: The weights contain NaN, infinity or negative variances.
        SaveError: It could not be written; what was there before is kept.
    """
    check_values(tensors, folder)
    data = {k: v for k, v in config.to_dict().items() if k not in (SAVE_ID, "_name_or_path")}
    save_id = save_id_of(tensors, data)
    files = {
        hub.WEIGHT_FILES[0]: to_safetensors(tensors, {"format": "pt", SAVE_ID: save_id}),
        hub.CONFIG_FILE: json_bytes({**data, SAVE_ID: save_id}),
    }
    if processor is not None:
        files[hub.PROCESSOR_FILE] = json_bytes(parse_json(processor.to_json_string(), hub.PROCESSOR_FILE))
    if card is not None:
        files[CARD_FILE] = card.encode()
    config_file = Path(folder) / hub.CONFIG_FILE
    try:
        earlier = read_json(config_file)
    except (OSError, ValueError):  # there is none that could be loaded
        earlier = None
    if earlier is not None:
        _warn_about_leftovers(Path(folder), earlier, data, files)
        if SAVE_ID not in earlier:  # others wrote it: new weights beside it are to be noticed if this save is killed
            write_file(config_file, json_bytes({**earlier, SAVE_ID: "none"}))
    write_folder(folder, files)


def describe_weights(config: Any, model_class_name: str, tensors: dict[str, np.ndarray]) -> None:
    """Notes in a config what transformers asks for: the class that the weights are of, and their number type."""
    config.architectures = [model_class_name]
    config.dtype = "float16" if any(tensor.dtype == np.float16 for tensor in tensors.values()) else "float32"


def save_id_of(tensors: dict[str, np.ndarray], config_data: dict[str, Any]) -> str:
    """The id of a save: a hash of its weights and config, so equal input gives an equal id.

    Args:
        tensors: Weights by our names.
        config_data: Content of `config.json`, with or without the id itself.
    """
    data = {k: v for k, v in config_data.items() if k != SAVE_ID}
    if isinstance(data.get("id2label"), dict):  # whose order decides the bytes
        data["id2label"] = {int(i): label for i, label in data["id2label"].items()}
    digest = hashlib.sha256(json_bytes(data))
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def _warn_about_leftovers(folder: Path, earlier: dict[str, Any], data: dict[str, Any], files: dict[str, bytes]) -> None:
    """Says so when the processor or card of another network stays beside the new weights."""
    left = [n for n in (hub.PROCESSOR_FILE, CARD_FILE) if n not in files and (folder / n).is_file()]
    labels = {str(i): label for i, label in data["id2label"].items()}  # as JSON has them
    if left and (earlier.get("model_type"), earlier.get("id2label")) != (data["model_type"], labels):
        warnings.warn(
            f"{folder}: {' and '.join(left)} of the earlier checkpoint stay beside the new weights; pass processor= "
            "and card= to replace them.",
            MobileViTHubWarning,
            stacklevel=4,
        )
