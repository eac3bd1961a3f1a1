"""`MobileViTConfig` and `MobileViTV2Config`: what a network is, checked when it is written down.

Both extend the configs of transformers: same `model_type`, same field names, so a folder written by
either library opens in the other. New fields default to what Apple's published networks do.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from transformers import MobileViTConfig as StockMobileViTConfig
from transformers import MobileViTV2Config as StockMobileViTV2Config
from transformers import PretrainedConfig

from ..errors import ConfigError, MobileViTHubWarning
from ..hub.find import PLACES, Checkpoint, config_values, find_checkpoint
from ..json_files import read_json
from ..rules import Rule
from .architecture import Version1, Version2
from .fields import (
    CODE_KEYS,
    FOREIGN_KEYS,
    V1_DEFAULTS,
    V1_RULES,
    V2_DEFAULTS,
    V2_RULES,
    Network,
    check_labels,
    same_labels,
)


class _CheckedConfig:
    """Range checks and preset access, mixed into both configs."""

    field_rules: dict[str, Rule]
    defaults: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        values = {**copy.deepcopy(self.defaults), **values}
        self._warn_about_unknown(values)
        ids = values.get("label2id")
        if values.get("id2label") == ids == {}:  # how a config without labels is written
            del values["id2label"], values["label2id"]
            values["num_labels"], ids = 0, None
        if values.get("id2label") is None and isinstance(ids, dict) and ids:
            values["id2label"] = {i: label for label, i in ids.items()}
        if values.get("id2label") is not None:
            values["id2label"] = check_labels(values["id2label"])
            count = values.get("num_labels")
            if count is not None and count != len(values["id2label"]):
                raise ConfigError(
                    f"Config says num_labels={count!r} but id2label has {len(values['id2label'])} labels; "
                    "give one of the two, or make them agree.",
                    field="id2label",
                    found=count,
                    expected=len(values["id2label"]),
                )
            values.pop("num_labels", None)
            if ids is not None and not same_labels(ids, values["id2label"]):
                warnings.warn(
                    "label2id contradicts id2label; id2label is used.",
                    MobileViTHubWarning,
                    stacklevel=3,
                )
            values["label2id"] = {label: i for i, label in values["id2label"].items()}
        for name, value in values.items():
            if name in self.field_rules:
                values[name] = self.field_rules[name](name, value)
        super().__init__(**values)
        self.check_together()  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.field_rules:
            value = self.field_rules[name](name, value)
        super().__setattr__(name, value)

    @classmethod
    def known_fields(cls) -> set[str]:
        """Names of all fields that a config file may hold."""
        return {f.name for f in dataclass_fields(cls)} | set(cls.field_rules) | set(cls.defaults)  # type: ignore[arg-type]

    @classmethod
    def _warn_about_unknown(cls, values: dict[str, Any]) -> None:
        known = cls.known_fields() | FOREIGN_KEYS
        for name in values:
            if name in known:
                continue
            if hasattr(cls, name):
                raise ConfigError(f"Config key {name!r} would hide a part of {cls.__name__}; remove it.", field=name)
            if name.startswith("_"):
                continue
            close = difflib.get_close_matches(name, cls.known_fields(), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            warnings.warn(
                f"{cls.__name__} has no field {name!r}; it is kept but has no effect.{hint}",
                MobileViTHubWarning,
                stacklevel=4,
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Any:
        """Returns the config of a published checkpoint without reading a file or using a network.

        Args:
            name: An alias of `mobilevit_hub.presets`, such as `"mobilevit-xs"`.
            overrides: Fields to change, for example `num_labels=10`.
        """
        from ..hub.presets import get_preset

        preset = get_preset(name)
        if preset.model_type != cls.model_type:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{preset.name!r} is a {preset.model_type} checkpoint, but {cls.__name__} describes "
                f"{cls.model_type} networks.",  # type: ignore[attr-defined]
                field="name",
                found=name,
            )
        values = {**preset.config, "num_labels": preset.num_labels, **overrides}
        if preset.num_labels == 1000 and "id2label" not in overrides and "num_labels" not in overrides:
            from ..hub.imagenet import imagenet_labels

            values["id2label"] = dict(enumerate(imagenet_labels()))
            values.pop("num_labels")
        elif "id2label" in overrides:
            values.pop("num_labels")
        return cls(**values)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Returns the config of a checkpoint by name: an alias, a folder or a Hub id.

        Args:
            pretrained_model_name_or_path: As for the models' `from_pretrained`.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, and config fields to change.

        Raises:
            SourceError, ConfigError: See `hub.find.find_checkpoint`.
        """
        places = {name: options.pop(name) for name in PLACES if name in options}
        checkpoint = find_checkpoint(pretrained_model_name_or_path, **places)
        config = load_config(checkpoint, **options)
        if not isinstance(config, cls):
            raise ConfigError(
                f"{checkpoint.config_file}: model_type is {config.model_type!r}; {cls.__name__} describes "
                f"{cls.model_type} networks.",  # type: ignore[attr-defined]
                path=checkpoint.config_file,
                field="model_type",
                found=config.model_type,
            )
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> Any:
        """Reads and checks a `config.json`."""
        return config_from_dict(read_json(path), path, expected=cls)


class MobileViTConfig(_CheckedConfig, Version1, StockMobileViTConfig):
    """Describes a MobileViT (version 1) network; the defaults are those of `mobilevit-s`.

    Fields of the transformers config keep their names and meaning. The values that published
    checkpoints use stand in `mobilevit_hub.presets`. Additional fields:

    Args:
        patch_size: Side of a square patch, or one side for each of the stages 3, 4 and 5
            (the paper's studies use 8, 4, 2). Default 2.
        n_attn_blocks: Transformer layers in stages 3, 4 and 5. Default 2, 4, 3.
        attention_head_size: Width of one attention head; when given it replaces
            `num_attention_heads`. Default None.
        conv_kernel_size: Side of the two spatial convolutions of a MobileViT block. Default 3.
        use_fusion: Whether a block ends by concatenating its input and fusing (paper: "skip
            connection"; off costs 0.5 points). Default true.
        ffn_dropout: Dropout between the two linear layers of the feed-forward part. Default 0.

    Source: MobileViT, arXiv 2110.02178.
    """

    field_rules = V1_RULES
    defaults = V1_DEFAULTS

    def __init__(self, **values: Any) -> None:
        # Defined here because transformers writes an __init__ into every config class without one.
        super().__init__(**values)


class MobileViTV2Config(_CheckedConfig, Version2, StockMobileViTV2Config):
    """Describes a MobileViTv2 network; the defaults are those of `mobilevitv2-1.0`.

    Fields of the transformers config keep their names and meaning. Additional fields:

    Args:
        patch_size: Side of a square patch, or one side for each of the stages 3, 4 and 5. Default 2.
        hidden_dropout_prob: Dropout after the attention and after the feed-forward part. Default 0.
        attn_norm: `"group"` normalises each image over channels, pixels and patches together, as
            Apple does; `"layer"` normalises each token over its channels. Default `"group"`.
        odd_map: What happens when a feature map is not a multiple of the patch: `"apple"` resizes it
            up, `"stock"` drops the last row and column and leaves zeros there, as transformers does.

    Source: Separable Self-attention for Mobile Vision Transformers, arXiv 2206.02680.
    """

    field_rules = V2_RULES
    defaults = V2_DEFAULTS

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


CONFIG_CLASSES: dict[str, type[PretrainedConfig]] = {"mobilevit": MobileViTConfig, "mobilevitv2": MobileViTV2Config}


def config_from_dict(
    data: dict[str, Any], path: Any = "config", expected: type | None = None, strict: bool = False
) -> Any:
    """Builds the right config class from the content of a `config.json`.

    Args:
        data: Content of the file.
        path: Names the source in errors.
        expected: A config class that it must be; default: either.
        strict: Raise on a field that this package does not know, instead of warning.
    """
    accepted = [k for k, cls in CONFIG_CLASSES.items() if expected is None or issubclass(cls, expected)]
    model_type = data.get("model_type")
    if model_type not in accepted:
        found = "model_type is missing" if model_type is None else f"model_type is {model_type!r}"
        raise ConfigError(
            f"{path}: {found}; expected {' or '.join(map(repr, accepted))}.",
            path=path,
            field="model_type",
            found=model_type,
            expected=accepted,
        )
    cls = CONFIG_CLASSES[model_type]
    ignored = [k for k in data if k.startswith(CODE_KEYS)]
    if ignored:
        warnings.warn(
            f"{path}: {', '.join(ignored)} would choose code to run and is ignored.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    values = {k: v for k, v in data.items() if k not in ignored and k != "model_type"}
    try:
        with warnings.catch_warnings():
            if strict:
                warnings.simplefilter("error", MobileViTHubWarning)
            return cls(**values)
    except MobileViTHubWarning as warning:
        raise ConfigError(f"{path}: {warning}", path=path) from warning
    except ConfigError as error:
        error.message, error.path = f"{path}: {error.message}", str(path)
        raise
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{path}: {reason}", path=path) from error


def full_config(network: Any) -> Any:
    """The config of a network that `fields.network_of` read; a config is returned as it is."""
    return config_from_dict(network.data) if isinstance(network, Network) else network


def load_config(checkpoint: Checkpoint, **changes: Any) -> Any:
    """The config of a checkpoint with some fields changed; see `hub.find.config_values`."""
    return config_from_dict(config_values(checkpoint, **changes), checkpoint.config_file)
