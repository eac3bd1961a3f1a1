"""Reads `tf_model.h5`, the weights file of the MobileViT classes that transformers 4 had for TensorFlow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mobilevit_hub import checkpoints, hub
from mobilevit_hub.checkpoints import Checkpoint
from mobilevit_hub.errors import CheckpointError, MissingDependencyError, NotFoundError, OfflineError
from mobilevit_hub.hub import KERAS_FILE
from mobilevit_hub.names import HEADS
from mobilevit_hub.tensors import MAX_TENSORS, check_values

# Where the names of the network start; what stands before them names Keras' groups.
_ROOTS = ("mobilevit", *(head.removesuffix(".") for head in HEADS))
_ENDINGS = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


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


def read_h5(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a `tf_model.h5` under our names and in our layout.

    Raises:
        CheckpointError: The file is damaged, refers to other files, or is of another kind.
    """
    tensors: dict[str, np.ndarray] = {}

    def refuse(name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} {what}.", path=path, field=name, mismatched=[name])

    def read(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if len(tensors) == MAX_TENSORS:
            raise CheckpointError(f"{path}: holds more than {MAX_TENSORS:,} tensors.", path=path)
        if item.dtype.kind != "f" or item.shape is None:
            raise refuse(name, f"is no array of floating point numbers (type {item.dtype})")
        # A tiny file can describe a huge tensor, and one that stands in another file.
        if item.external or item.is_virtual or item.id.get_storage_size() < item.nbytes:
            raise refuse(name, f"claims {item.size:,} values but the file stores fewer")
        ours = _our_name(name, path)
        if ours in tensors:
            raise refuse(name, f"is the second {ours!r} in the file")
        tensors[ours] = _our_layout(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(read)  # which follows no link out of the file
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged HDF5 file: {reason}.", path=path) from error
    return tensors


def _our_name(name: str, path: Any) -> str:
    """`mobilevit/tf_mobile_vi_t_model/mobilevit/conv_stem/normalization/gamma:0` → `mobilevit.conv_stem.….weight`."""
    parts = name.removesuffix(":0").split("/")
    starts = [i for i, part in enumerate(parts) if part in _ROOTS]
    if not starts or parts[-1] not in _ENDINGS:
        raise CheckpointError(
            f"{path}: {name!r} is no weight of a MobileViT; expected the {KERAS_FILE} of transformers' "
            "TFMobileViT classes.",
            path=path,
            field=name,
        )
    # A segmentation head has a classifier of its own inside.
    start = next((i for i in reversed(starts) if parts[i] != "classifier"), starts[-1])
    return ".".join([*parts[start:-1], _ENDINGS[parts[-1]]])


def _our_layout(array: np.ndarray) -> np.ndarray:
    """Convolutions, depthwise ones too, from `(kh, kw, I, O)` to `(O, I, kh, kw)`; matrices transposed."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes)) if axes else array
