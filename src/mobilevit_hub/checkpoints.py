"""From a name to weights that fit: the same for both frameworks.

A name is an alias of `presets`, a folder, or a Hub id, tried in that order.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from . import hub
from .config_fields import check_labels
from .configuration import config_from_dict
from .errors import CheckpointError, ConfigError, MobileViTHubWarning, NotFoundError, OfflineError
from .json_files import read_json
from .names import SCHEMES, renames, to_ours
from .presets import Preset, find_preset, get_preset
from .saving import SAVE_ID
from .structure import HEADS
from .tensors import check_values, read_tensors

PACKAGE = Path(__file__).parent
PLACES = ("revision", "token", "cache_dir", "local_files_only")
"""Options that say where a checkpoint is looked for; see `find_checkpoint`."""


@dataclass(frozen=True)
class Checkpoint:
    """Where the files of a checkpoint lie, and what is known about it."""

    name: str
    """As the user gave it."""
    config_data: dict[str, Any]
    """Content of its `config.json`."""
    config_file: Path
    processor_data: dict[str, Any] | None
    """Content of its `preprocessor_config.json`; None when it has none."""
    find_weights: Callable[[], Path]
    """Finds the weights, downloading them when needed."""
    preset: Preset | None
    """The row of the presets table, when it was named by an alias."""

    @cached_property
    def weights_file(self) -> Path:
        """The file of the weights, fetched when it is first asked for."""
        return self.find_weights()

    @property
    def is_timm(self) -> bool:
        """Whether it is a timm repository, with timm's tensor names."""
        return _is_timm(self.config_data)


def find_checkpoint(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Finds the files of a checkpoint, downloading named ones from the Hub when needed; the weights come last.

    Args:
        name: An alias such as `"mobilevit-s"`, a folder, or a Hub id such as `"apple/mobilevit-small"`.
        revision: Branch, tag or commit on the Hub. Default: `main`.
        token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
        cache_dir: Folder of the Hub's cache; default: as `HF_HOME` says.
        local_files_only: Never use the network.

    Raises:
        NotFoundError: No alias, folder or repository of that name, or it lacks a file.
        OfflineError, AccessError, IntegrityError: See `hub.fetch`.
        ConfigError: Its JSON files are wrong.
    """
    name = str(name)
    preset = None if "/" in name else find_preset(name)
    options = {
        "revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only
    }  # fmt: skip
    if preset is not None:
        if preset.unavailable:
            raise NotFoundError(f"{preset.name!r} cannot be loaded: {preset.unavailable}", path=name)
        if as_path(name).is_dir():
            warnings.warn(
                f"{name!r} is a published checkpoint; for the folder of that name write './{name}'.",
                MobileViTHubWarning,
                stacklevel=3,
            )
        if preset.folder:
            return _from_folder(PACKAGE / preset.folder, name, preset)
        return _from_hub(str(preset.hub_id), name, preset, options)
    folder = as_path(name)
    if name and folder.is_dir():
        if not name.startswith((".", "/", "~")) and name.count("/") == 1 and hub.looks_like_hub_id(name):
            warnings.warn(
                f"{name!r} is a folder here and could be a Hub id; the folder is used.",
                MobileViTHubWarning,
                stacklevel=3,
            )
        return _from_folder(folder, name, None)
    if folder.is_file():
        raise NotFoundError(f"{name!r} is a file; expected the folder that holds it, or an alias.", path=name)
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        raise NotFoundError(f"There is no folder {name!r}.", path=name)
    if "/" in name and hub.looks_like_hub_id(name):
        return _from_hub(name, name, None, options)
    return get_preset(name)  # type: ignore[return-value]  # always raises, with the nearest names


def as_path(name: str) -> Path:
    """A path that can be asked for, with the home folder in place of `~`.

    Raises:
        NotFoundError: The system takes no such name: too long, an unknown user, a NUL byte.
    """
    try:
        folder = Path(name).expanduser()
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user, a NUL byte
        reason = str(error.strerror if isinstance(error, OSError) else error).rstrip(".")
        raise NotFoundError(f"{name[:200]!r} is neither an alias nor a folder: {reason}.", path=name) from error
    return folder


def _from_folder(folder: Path, name: str, preset: Preset | None) -> Checkpoint:
    config_file = folder / hub.CONFIG_FILE
    if not config_file.is_file():
        raise ConfigError(
            f"{folder}: has no config.json; a checkpoint folder holds config.json, preprocessor_config.json and "
            "model.safetensors.",
            path=folder,
            field=hub.CONFIG_FILE,
        )
    processor_file = folder / hub.PROCESSOR_FILE
    processor = read_json(processor_file) if processor_file.is_file() else None
    return Checkpoint(
        name, read_json(config_file), config_file, processor, partial(_weights_from_folder, folder), preset
    )


def _weights_from_folder(folder: Path) -> Path:
    for filename in hub.WEIGHT_FILES:
        if (folder / filename).is_file():
            return folder / filename
    raise NotFoundError(f"{folder}: has no {' or '.join(hub.WEIGHT_FILES)}.", path=folder)


def _from_hub(repo_id: str, name: str, preset: Preset | None, options: dict[str, Any]) -> Checkpoint:
    config_file = hub.fetch(repo_id, hub.CONFIG_FILE, options)
    config = read_json(config_file)
    processor = None
    if not _is_timm(config):  # whose preprocessing stands in its config
        with suppress(NotFoundError, OfflineError):
            processor = read_json(hub.fetch(repo_id, hub.PROCESSOR_FILE, options))
    return Checkpoint(name, config, config_file, processor, partial(_weights_from_hub, repo_id, options), preset)


def _weights_from_hub(repo_id: str, options: dict[str, Any]) -> Path:
    safetensors, pickled = hub.WEIGHT_FILES
    try:
        return hub.fetch(repo_id, safetensors, options)
    except NotFoundError:
        with suppress(NotFoundError):
            return hub.fetch(repo_id, pickled, options)
    except OfflineError:
        # A cache that another program filled may hold the other file, and does not say that this one does not exist.
        with suppress(OfflineError):
            return hub.fetch(repo_id, pickled, {**options, "local_files_only": True})
        raise
    raise NotFoundError(f"{repo_id!r} has neither {safetensors} nor {pickled}.", path=repo_id)


def _is_timm(config: dict[str, Any]) -> bool:
    return "architecture" in config and "model_type" not in config


def load_config(checkpoint: Checkpoint, **changes: Any) -> Any:
    """The config of a checkpoint with some fields changed.

    Changes that touch the classifier: `num_labels`, or `id2label` for named classes.
    """
    if checkpoint.is_timm:
        data = _config_of_timm(checkpoint)
    else:
        data = {k: v for k, v in checkpoint.config_data.items() if k != SAVE_ID}
    if "id2label" in changes or "num_labels" in changes:
        data = {k: v for k, v in data.items() if k not in ("id2label", "label2id", "num_labels")}
    if checkpoint.preset is not None and checkpoint.preset.num_labels == 1000 and not checkpoint.is_timm:
        labels = data.get("id2label") or {}
        if labels and all(str(v).startswith("LABEL_") for v in labels.values()):
            data = {**{k: v for k, v in data.items() if k != "label2id"}, **_imagenet_labels()}
    return config_from_dict({**data, **changes}, checkpoint.config_file)


def head_changes(
    own: Any, tensors: dict[str, Any], num_labels: int | None, id2label: dict[int, str] | None
) -> tuple[dict[str, Any], bool, bool]:
    """What the labels that a user asks for mean for a checkpoint.

    Args:
        own: Config of the checkpoint.
        tensors: Its tensors, by name.
        num_labels: Number of classes; None: the checkpoint's.
        id2label: Names of the classes, by index; None: the checkpoint's. Other names mean other classes, also
            where there are as many.

    Returns:
        Changes of its config, whether it needs a new classifier, and whether it has none.
    """
    changes: dict[str, Any] = {}
    if num_labels is not None and id2label is None and num_labels != own.num_labels:
        changes["num_labels"] = num_labels
    if id2label is not None and check_labels(id2label) != own.id2label:
        changes["id2label"] = id2label
        if num_labels is not None:
            changes["num_labels"] = num_labels
    headless = not any(name.startswith(HEADS) for name in tensors)
    return changes, bool(changes) or (num_labels is not None and headless), headless


def warn_of_new_head(own: Any, config: Any, headless: bool) -> None:
    """Says that the classifier of a loaded model is random.

    Args:
        own: Config of the checkpoint.
        config: Config of the model.
        headless: Whether the checkpoint has no classifier.
    """
    renamed = config.num_labels == own.num_labels and not headless
    labels = "other labels" if renamed else f"{config.num_labels} labels"
    warnings.warn(
        f"The checkpoint classifies {own.num_labels} labels; the classifier for {labels} is new and random. "
        "Every other weight was loaded.",
        MobileViTHubWarning,
        stacklevel=3,
    )


def check_version(checkpoint: Checkpoint, config: Any, model_class: Any) -> None:
    """Raises `ConfigError` unless a model class is for the version of a config."""
    expected = model_class.config_class
    if not isinstance(config, expected):
        raise ConfigError(
            f"{checkpoint.config_file}: model_type is {config.model_type!r}, but {model_class.__name__} is a "
            f"{expected.model_type} network.",
            path=checkpoint.config_file,
            field="model_type",
            found=config.model_type,
            expected=expected.model_type,
        )


def _imagenet_labels() -> dict[str, Any]:
    from .presets import imagenet_labels

    return {"id2label": dict(enumerate(imagenet_labels()))}


def _config_of_timm(checkpoint: Checkpoint) -> dict[str, Any]:
    architecture = checkpoint.config_data["architecture"]
    preset = checkpoint.preset or find_preset(str(architecture))
    if preset is None:
        raise ConfigError(
            f"{checkpoint.config_file}: timm architecture {architecture!r} is not a MobileViT of this package.",
            path=checkpoint.config_file,
            field="architecture",
            found=architecture,
        )
    count = checkpoint.config_data.get("num_classes", preset.num_labels)
    own = checkpoint.config_data.get("label_names")
    labels = _imagenet_labels() if count == 1000 else {"num_labels": count}
    if isinstance(own, list) and len(own) == count:
        labels = {"id2label": dict(enumerate(own))}
    return {"model_type": preset.model_type, **preset.config, **labels}


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def open_checkpoint(name: str | Path, **places: Any) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Finds a checkpoint and reads its config and its weights, which belong to the same save.

    Args:
        name: As for `find_checkpoint`.
        places: Options of `find_checkpoint`.

    Raises:
        SourceError, ConfigError: See `find_checkpoint`.
        CheckpointError: See `load_tensors`.
    """
    attempt = 0
    while True:
        checkpoint = find_checkpoint(name, **places)
        config = load_config(checkpoint)
        try:
            return checkpoint, config, load_tensors(checkpoint, config)
        except CheckpointError as error:
            # Somebody may be between renaming the weights and renaming the config: read both again.
            if error.field != SAVE_ID or attempt == 3:
                raise
            attempt += 1
            time.sleep(0.05)


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
