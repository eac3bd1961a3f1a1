"""From a name to weights that fit: the same for both frameworks.

A name is an alias of `presets`, a folder, or a Hub id, tried in that order.
"""

from __future__ import annotations

import copy
import difflib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from ..errors import ConfigError, InputError, MobileViTHubWarning
from ..hub.find import Checkpoint
from ..network.configuration import config_from_dict, full_config, load_config
from ..network.fields import check_labels
from ..network.structure import HEADS
from .fitting import LoadReport, fit_tensors
from .reading import read_checkpoint

NUMBER_TYPES = ("float32", "float16", "bfloat16", "float64")
ATTENTIONS = ("sdpa", "eager")


@dataclass
class Loading:
    """A checkpoint on its way into a model of either framework: `read` opens it, `fit` says which weight gets what."""

    model_class: Any
    checkpoint: Checkpoint
    config: Any
    """Config of the model."""
    tensors: dict[str, np.ndarray]
    """What the file holds, by our names."""
    labels: int
    """Number of the checkpoint's own labels; 0: it has no classifier."""
    new_head: bool
    """Whether the classifier is replaced."""

    @classmethod
    def read(
        cls,
        model_class: Any,
        name: str | os.PathLike | Checkpoint,
        *,
        config: Any = None,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        attn_implementation: str | None = None,
        changes: dict[str, Any],
        features: dict[str, Any],
        places: dict[str, Any],
        opener: Callable[..., tuple[Checkpoint, Any, dict[str, np.ndarray]]] | None = None,
    ) -> Loading:
        """Checks the arguments of a `from_pretrained`, and reads a checkpoint for it.

        Args:
            model_class: What is to be loaded.
            name: An alias, a folder, a Hub id, or a checkpoint that was found already.
            config: Config to use in place of the checkpoint's; it is copied.
            num_labels: Number of classes; another one than the checkpoint's makes a new classifier.
            id2label: Names of the classes, by index; other names are other classes, also where there are as many.
            attn_implementation: `"sdpa"`, `"eager"` or None.
            changes: Config fields to change.
            features: `out_features` and `out_indices`, for backbones.
            places: Options of `find_checkpoint`.
            opener: What opens it in place of `open_checkpoint`.

        Raises:
            InputError: An argument is unknown, or contradicts another.
            SourceError, ConfigError, CheckpointError: See `open_checkpoint`.
        """
        _check_arguments(model_class, config, num_labels, id2label, attn_implementation, changes, features)
        checkpoint, own, tensors = (opener or open_checkpoint)(
            name if isinstance(name, Checkpoint) else os.fspath(name), **places
        )
        headless = not any(name.startswith(HEADS) for name in tensors)
        of_head: dict[str, Any] = {}
        if num_labels is not None and id2label is None and num_labels != own.num_labels:
            of_head["num_labels"] = num_labels
        if id2label is not None and check_labels(id2label) != own.id2label:
            of_head["id2label"] = id2label
            if num_labels is not None:
                of_head["num_labels"] = num_labels
        new_head = bool(of_head) or (num_labels is not None and headless)
        if config is not None:
            own_class = isinstance(config, model_class.config_class)
            config = copy.deepcopy(config) if own_class else config_from_dict(config.to_dict())
            new_head = config.num_labels != own.num_labels
        else:
            config = load_config(checkpoint, **changes, **of_head) if changes or of_head else own
        _check_version(checkpoint, config, model_class)
        return cls(model_class, checkpoint, config, tensors, 0 if headless else own.num_labels, new_head)

    def fit(
        self, wanted: dict[str, tuple[int, ...]], *, strict: bool = True
    ) -> tuple[dict[str, np.ndarray], LoadReport]:
        """The tensor of each weight of the model, by name and shape; says that a new classifier is random.

        Raises:
            CheckpointError: See `fit_tensors`.
        """
        tensors, report = fit_tensors(
            self.tensors,
            wanted,
            path=self.checkpoint.weights_file,
            model_name=self.model_class.__name__,
            prefix=self.model_class.base_model_prefix,
            new_head=self.new_head,
            strict=strict,
        )
        self.tensors = {}  # each is let go when it has been copied
        if report.new_head:
            labels = "other labels" if self.config.num_labels == self.labels else f"{self.config.num_labels} labels"
            has = f"classifies {self.labels} labels" if self.labels else "has no classifier"
            warnings.warn(
                f"The checkpoint {has}; the classifier for {labels} is new and random. Every other weight was loaded.",
                MobileViTHubWarning,
                stacklevel=3,
            )
        return tensors, report


def _check_arguments(
    model_class: Any,
    config: Any,
    num_labels: int | None,
    id2label: Any,
    attn_implementation: str | None,
    changes: dict[str, Any],
    features: dict[str, Any],
) -> None:
    """Refuses arguments that would be ignored, before anything is opened."""
    known = model_class.config_class.known_fields()
    if not hasattr(model_class, "select_features"):
        changes = changes | {name: value for name, value in features.items() if value is not None}
    unknown = [name for name in changes if name not in known or name in features]
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*known, "num_labels", "dtype", "revision"], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if unknown[0] in features:
            hint = " It belongs to backbones, which return feature maps."
        raise InputError(
            f"{model_class.__name__}.from_pretrained has no argument {unknown[0]!r}, and there is no config field of "
            f"that name.{hint}",
            field=unknown[0],
            found=changes[unknown[0]],
        )
    if config is not None and (changes or num_labels is not None or id2label is not None):
        raise InputError(
            "from_pretrained takes either config= or single changes such as num_labels=; set them in the config.",
            field="config",
        )
    if config is not None and not isinstance(config, PretrainedConfig):
        raise InputError(
            f"config is {type(config).__name__}; expected a config such as MobileViTConfig, or single changes such as "
            "output_stride=16.",
            field="config",
        )
    if attn_implementation not in (None, *ATTENTIONS):
        raise InputError(
            f"attn_implementation is {attn_implementation!r}; expected 'sdpa' or 'eager'.",
            field="attn_implementation",
            found=attn_implementation,
        )


def number_type(dtype: Any, torch_dtype: Any = None) -> str:
    """Name of the number type that an argument means: a name or a type of either framework; "auto" is float32.

    Args:
        dtype: What the user gave; None: nothing.
        torch_dtype: The same by its older name, which counts where `dtype` is None.

    Raises:
        InputError: It is another one.
    """
    given = torch_dtype if dtype is None else dtype
    name = str(getattr(given, "name", given or "auto")).removeprefix("torch.").replace("auto", "float32")
    if name not in NUMBER_TYPES:
        raise InputError(f"dtype is {given!r}; expected float32, float16 or bfloat16.", field="dtype", found=given)
    return name


def _check_version(checkpoint: Checkpoint, config: Any, model_class: Any) -> None:
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


def open_checkpoint(name: str | Path | Checkpoint, **places: Any) -> tuple[Checkpoint, Any, dict[str, np.ndarray]]:
    """Finds a checkpoint and reads its config and its weights; see `reading.read_checkpoint`."""
    checkpoint, network, tensors = read_checkpoint(name, **places)
    return checkpoint, full_config(network), tensors
