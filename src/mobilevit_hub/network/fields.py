"""The fields of both configs: their defaults, which values each accepts, and which keys of a file are not fields."""

from __future__ import annotations

import unicodedata
from typing import Any

from ..errors import ConfigError
from ..rules import Rule, either, fail, flag, integer, number, one_of, optional, several, whole
from .architecture import Version1, Version2

MAX_LABELS = 100_000
MAX_LABEL_LENGTH = 512
ACTIVATIONS = ("silu", "swish", "relu", "gelu")
OUTPUT_STRIDES = (8, 16, 32)

_PROBABILITY = number(0, 1, open_high=True)
_RATIO = number(0, 16, open_low=True)

_SHARED_RULES: dict[str, Rule] = {
    "num_channels": integer(1, 16),
    "image_size": either(integer(32, 1024), several(integer(32, 1024), 2)),
    "patch_size": either(integer(1, 8), several(integer(1, 8), 3)),
    "expand_ratio": _RATIO,
    "hidden_act": one_of(*ACTIVATIONS),
    "conv_kernel_size": one_of(1, 3, 5, 7),
    "output_stride": one_of(*OUTPUT_STRIDES),
    "n_attn_blocks": several(integer(1, 16), 3),
    "hidden_dropout_prob": _PROBABILITY,
    "classifier_dropout_prob": _PROBABILITY,
    "ffn_dropout": _PROBABILITY,
    "layer_norm_eps": number(0, 0.1, open_low=True),
    "initializer_range": number(0, 1),
    "aspp_out_channels": integer(1, 4096),
    "atrous_rates": several(integer(1, 64), 1, 8),
    "aspp_dropout_prob": _PROBABILITY,
    "semantic_loss_ignore_index": integer(-100, 65535),
    "dtype": optional(lambda name, value: _dtype(name, value)),
    "output_hidden_states": optional(flag),
    "return_dict": optional(flag),
    "problem_type": optional(one_of("regression", "single_label_classification", "multi_label_classification")),
    "num_labels": integer(0, MAX_LABELS),
    "id2label": lambda name, value: check_labels(value) if value else value,
}

V1_RULES: dict[str, Rule] = _SHARED_RULES | {
    "hidden_sizes": several(integer(8, 1024), 3),
    "neck_hidden_sizes": several(integer(1, 4096), 7),
    "num_attention_heads": integer(1, 64),
    "attention_head_size": optional(integer(1, 1024)),
    "mlp_ratio": _RATIO,
    "attention_probs_dropout_prob": _PROBABILITY,
    "qkv_bias": flag,
    "use_fusion": flag,
}

V2_RULES: dict[str, Rule] = _SHARED_RULES | {
    "base_attn_unit_dims": several(integer(8, 2048), 3),
    "width_multiplier": number(0.25, 4),
    "ffn_multiplier": whole(1, 16),
    "attn_dropout": _PROBABILITY,
    "attn_norm": one_of("group", "layer"),
    "odd_map": one_of("apple", "stock"),
}

# Those of transformers, and of the fields that it lacks what Apple's published networks do.
_SHARED_DEFAULTS: dict[str, Any] = {
    "num_channels": 3, "image_size": 256, "patch_size": 2, "conv_kernel_size": 3, "output_stride": 32,
    "n_attn_blocks": [2, 4, 3], "layer_norm_eps": 1e-5, "initializer_range": 0.02, "classifier_dropout_prob": 0.1,
    "ffn_dropout": 0.0, "atrous_rates": [6, 12, 18], "aspp_dropout_prob": 0.1, "semantic_loss_ignore_index": 255,
}  # fmt: skip
V1_DEFAULTS: dict[str, Any] = _SHARED_DEFAULTS | {
    "hidden_sizes": [144, 192, 240], "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640], "num_attention_heads": 4,
    "attention_head_size": None, "mlp_ratio": 2.0, "expand_ratio": 4.0, "hidden_act": "silu", "qkv_bias": True,
    "use_fusion": True, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "aspp_out_channels": 256,
}  # fmt: skip
V2_DEFAULTS: dict[str, Any] = _SHARED_DEFAULTS | {
    "base_attn_unit_dims": [128, 192, 256], "width_multiplier": 1.0, "ffn_multiplier": 2, "attn_dropout": 0.0,
    "expand_ratio": 2.0, "hidden_act": "swish", "attn_norm": "group", "odd_map": "apple", "hidden_dropout_prob": 0.0,
    "aspp_out_channels": 512,
}  # fmt: skip

# Starts of the keys of a config file that name code or choose it; never acted on. An attention
# "implementation" can be a Hub repository whose kernels transformers would run.
CODE_KEYS = (
    "auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "_auto_class",
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
)  # fmt: skip
# Keys that transformers itself writes or once wrote, and that are not fields.
FOREIGN_KEYS = {
    "model_type", "transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "attn_implementation",
    "_commit_hash", "save_id", "use_return_dict", "output_attentions", "out_features", "out_indices",
    "_out_features", "_out_indices", "task_specific_params",
    "use_cache",  # Trainer sets it
    "mlp_ratio",  # stands in published version 2 configs, without effect there
}  # fmt: skip

_GENERAL_KEYS = {"architectures", "chunk_size_feed_forward", "is_encoder_decoder", "label2id"}


class Network:
    """A network by the fields of a config file; it has the attributes that networks are built from.

    Attributes:
        data: Content of the file.
    """

    def __init__(self, data: dict[str, Any], values: dict[str, Any]) -> None:
        self.data = data
        vars(self).update(values)


class _Network1(Network, Version1):
    """A MobileViT."""


class _Network2(Network, Version2):
    """A MobileViTv2."""


def network_of(data: dict[str, Any]) -> Any:
    """The network of a `config.json`, for those who need no transformers.

    Args:
        data: Content of the file.

    Returns:
        A `Network`; None where `configuration.config_from_dict` has something to say about the file, or counts its
        labels by rules of transformers.
    """
    kinds: dict[Any, tuple[Any, dict[str, Rule], dict[str, Any]]] = {
        "mobilevit": (_Network1, V1_RULES, V1_DEFAULTS), "mobilevitv2": (_Network2, V2_RULES, V2_DEFAULTS)
    }  # fmt: skip
    kind, labels = data.get("model_type"), data.get("id2label")
    if kind not in kinds or not labels or any(key.startswith(CODE_KEYS) for key in data):
        return None
    cls, rules, defaults = kinds[kind]
    if set(data) - set(rules) - FOREIGN_KEYS - _GENERAL_KEYS:
        return None
    try:
        fields = defaults | {name: rules[name](name, value) for name, value in data.items() if name in rules}
        count, ids = len(fields["id2label"]), data.get("label2id")
        if data.get("num_labels", count) != count or not (ids is None or same_labels(ids, fields["id2label"])):
            return None
        network = cls(data, fields | {"num_labels": count})
        network.check_together()
    except ConfigError:
        return None
    return network


def _dtype(name: str, value: Any) -> Any:
    text = str(value).removeprefix("torch.")
    if text not in ("float32", "float16", "bfloat16"):
        raise fail(name, value, "float32, float16 or bfloat16")
    return value


def check_labels(id2label: Any) -> dict[int, str]:
    """Returns `id2label` with integer keys 0 … n−1 in order, or raises `ConfigError`."""
    if not isinstance(id2label, dict) or not 1 <= len(id2label) <= MAX_LABELS:
        raise fail("id2label", id2label, f"an object with 1 to {MAX_LABELS} labels")
    labels: dict[int, str] = {}
    for key, label in id2label.items():
        text = str(key)
        if not (text.isascii() and text.isdigit()) or isinstance(key, bool):
            raise fail("id2label", key, "whole numbers as keys")
        if not isinstance(label, str) or len(label) > MAX_LABEL_LENGTH:
            raise fail(f"id2label[{key}]", label, f"text of at most {MAX_LABEL_LENGTH} characters")
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in label):
            raise fail(f"id2label[{key}]", label, "text without control characters")
        labels[int(text)] = label
    gaps = sorted(set(range(len(id2label))) - set(labels))
    if gaps:
        raise ConfigError(
            f"id2label has {len(id2label)} labels but no label {gaps[0]}; expected the keys 0 to {len(id2label) - 1}.",
            field="id2label",
            found=sorted(labels)[:5],
            expected=f"0 to {len(id2label) - 1}",
        )
    return {i: labels[i] for i in range(len(labels))}


def same_labels(label2id: Any, id2label: dict[int, str]) -> bool:
    """Whether the maps agree; of a label that stands twice, `label2id` may name either index."""
    if not isinstance(label2id, dict) or set(label2id) != set(id2label.values()):
        return False
    return all(type(i) is int and id2label.get(i) == label for label, i in label2id.items())
