"""From a name to the files of a checkpoint.

A name is an alias of `presets`, a folder, or a Hub id, tried in that order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MobileViTHubWarning, NotFoundError, OfflineError
from ..json_files import read_json
from . import download as hub
from .imagenet import imagenet_labels
from .presets import Preset, find_preset, get_preset

PACKAGE = Path(__file__).parents[1]
ASSETS = PACKAGE / "assets"
PLACES = ("revision", "token", "cache_dir", "local_files_only")
"""Options that say where a checkpoint is looked for; see `find_checkpoint`."""
SAVE_ID = "save_id"
"""Field of a config, and of the metadata of its weights, that says which save they come from."""


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
    find_file: Callable[..., Path]
    """Finds a file of it by name, downloading it when needed; with `local_files_only=True` only what is here already.
    Raises `NotFoundError` where it has none of that name."""
    preset: Preset | None = None
    """The row of the presets table, when it was named by an alias."""
    weights: Path | None = None
    """The file of its weights, where it is not the one that `find_file` finds."""

    @cached_property
    def weights_file(self) -> Path:
        """The file of the weights, fetched when it is first asked for."""
        if self.weights is not None:
            return self.weights
        safetensors, pickled = hub.WEIGHT_FILES
        with suppress(NotFoundError):
            try:
                return self.find_file(safetensors)
            except NotFoundError:
                return self.find_file(pickled)
            except OfflineError:
                # A cache that another program filled may hold the other file, and not say that this one is missing.
                with suppress(OfflineError, NotFoundError):
                    return self.find_file(pickled, local_files_only=True)
                raise
        raise NotFoundError(f"{self.name}: has no {safetensors} or {pickled}.", path=self.name)

    def read_again(self) -> Checkpoint:
        """The same files with their content of now: a folder may have been saved again meanwhile."""
        processor_file = self.config_file.with_name(hub.PROCESSOR_FILE)
        processor = read_json(processor_file) if processor_file.is_file() else None
        return replace(self, config_data=read_json(self.config_file), processor_data=processor)

    @property
    def is_timm(self) -> bool:
        """Whether it is a timm repository, with timm's tensor names."""
        return _is_timm(self.config_data)


def find_checkpoint(
    name: str | Path | Checkpoint,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Finds the files of a checkpoint, downloading named ones from the Hub when needed; the weights come last.

    All files of a repository are those of the commit that its `config.json` was found in.

    Args:
        name: An alias such as `"mobilevit-s"`, a folder, or a Hub id such as `"apple/mobilevit-small"`. A checkpoint
            that was found already is returned as it is.
        revision: Branch, tag or commit on the Hub. Default: `main`.
        token: Access token; default: the one of `hf auth login` or `HF_TOKEN`.
        cache_dir: Folder of the Hub's cache; default: as `HF_HOME` says.
        local_files_only: Never use the network.

    Raises:
        NotFoundError: No alias, folder or repository of that name, or it lacks a file.
        OfflineError, AccessError, IntegrityError: See `hub.fetch`.
        ConfigError: Its JSON files are wrong.
    """
    if isinstance(name, Checkpoint):
        return name
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
    return Checkpoint(name, read_json(config_file), config_file, processor, partial(_file_in, folder), preset)


def _file_in(folder: Path, filename: str, *, local_files_only: bool = True) -> Path:
    if not (folder / filename).is_file():
        raise NotFoundError(f"{folder}: has no {filename}.", path=folder)
    return folder / filename


def _from_hub(repo_id: str, name: str, preset: Preset | None, options: dict[str, Any]) -> Checkpoint:
    config_file = hub.fetch(repo_id, hub.CONFIG_FILE, **options)
    # The snapshot of a commit: what follows belongs to it, whatever is pushed meanwhile.
    commit = config_file.parent.name

    def find_file(filename: str, **changes: Any) -> Path:
        return hub.fetch(repo_id, filename, commit=commit, **options | changes)

    config = read_json(config_file)
    processor = None
    if not _is_timm(config):  # whose preprocessing stands in its config
        with suppress(NotFoundError, OfflineError):
            processor = read_json(find_file(hub.PROCESSOR_FILE))
    return Checkpoint(name, config, config_file, processor, find_file, preset)


def _is_timm(config: dict[str, Any]) -> bool:
    return "architecture" in config and "model_type" not in config


def config_values(checkpoint: Checkpoint, **changes: Any) -> dict[str, Any]:
    """The fields of a checkpoint's config; timm's are translated, and ImageNet's classes get their names.

    Args:
        checkpoint: What `find_checkpoint` found.
        changes: Fields to change. Those that touch the classifier: `num_labels`, or `id2label` for named classes.
    """
    if checkpoint.is_timm:
        data = _config_of_timm(checkpoint)
    else:
        data = {k: v for k, v in checkpoint.config_data.items() if k != SAVE_ID}
    if "id2label" in changes or "num_labels" in changes:
        data = {k: v for k, v in data.items() if k not in ("id2label", "label2id", "num_labels")}
    elif checkpoint.preset is not None and checkpoint.preset.num_labels == 1000 and not checkpoint.is_timm:
        labels = data.get("id2label") or {}
        if labels and all(str(v).startswith("LABEL_") for v in labels.values()):
            data = {k: v for k, v in data.items() if k != "label2id"}
            data["id2label"] = dict(enumerate(imagenet_labels()))
    return {**data, **changes}


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
    if not isinstance(own, list) or len(own) != count:
        own = imagenet_labels() if count == 1000 else None
    labels = {"num_labels": count} if own is None else {"id2label": dict(enumerate(own))}
    return {"model_type": preset.model_type, **preset.config, **labels}
