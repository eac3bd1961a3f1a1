"""Apple's outputs for the ten classification networks, and the rule that makes their weights and inputs.

Nobody's trained weights are needed. A tensor's values follow from its name, its shape and a seed, an
input's values from its kind and a seed; only the outputs are stored, in `reference/`. They were
computed with Apple's ml-cvnets (commit 77717569ab4a852614dae01f010b32b820cb33bb) in float64 from the
float32 weights and inputs, and rounded to float32. Where timm or stock transformers equal Apple, the
case says `same_as`; where transformers differs, its own outputs are stored as well.

    case = reference.load_case("mobilevitv2_050", "logits_224x300")
    model.load_state_dict(reference.state_dict("mobilevitv2_050", "transformers"))    # NumPy arrays
    case.check({"logits": model(case.input())})

Inputs are NCHW floats in [0, 1], in the channel order of Apple's weights: B, G, R for version 1,
R, G, B for version 2. timm wants R, G, B everywhere, so its version 1 stem kernels are reversed here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "reference"


@lru_cache
def manifest() -> dict[str, dict]:
    """Per variant: version, size, seed, tensor names and shapes (Apple's), hashes and cases."""
    return json.loads(gzip.decompress((FOLDER / "cases.json.gz").read_bytes()))


VARIANTS = tuple(manifest())


# --------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------

# Centre and half width of the one-dimensional tensors. Variances before each norm are small, so that
# a wrong epsilon shows in the outputs.
_BATCH_NORM = {"weight": (0.6, 1.4), "bias": (-0.3, 0.3), "running_mean": (-0.12, 0.12), "running_var": (0.06, 0.12)}
_LAYER_NORM_WEIGHT, _LAYER_NORM_BIAS = (0.6, 1.4), (-0.3, 0.3)
_BRANCH_BIAS, _BIAS = (-0.03, 0.03), (-0.2, 0.2)

# Standard deviation of a kernel is gain / sqrt(fan_in); the first pattern found in the name wins.
_GAINS = (
    (r"pre_norm_mha\.1\.qkv_proj", 1.7),
    (r"pre_norm_mha\.1\.out_proj", 0.16),
    (r"pre_norm_ffn\.1\.weight", 1.3),
    (r"pre_norm_ffn\.4\.weight", 0.2),
    (r"pre_norm_attn\.1\.qkv_proj", 2.0),
    (r"pre_norm_attn\.1\.out_proj", 0.13),
    (r"pre_norm_ffn\.1\.block", 1.3),
    (r"pre_norm_ffn\.3\.block", 0.18),
    (r"^classifier\.", 2.5),
    (r"^conv_1\.", 1.2),
    (r"exp_1x1", 0.26),
    (r"block\.conv_3x3", 0.46),
    (r"red_1x1", 0.44),
    (r"local_rep\.(conv_3x3|0)\.", 0.3),
    (r"local_rep\.(conv_1x1|1)\.", 0.2),
    (r"conv_proj", 0.3),
    (r"fusion", 0.36),
    (r"conv_1x1_exp", 0.38),
)
_SQRT_3 = 1.7320508075688772  # uniform on (-b, b) has standard deviation b / sqrt(3)

# Kernels that read an activation function sum to zero, or its positive mean would swamp the image.
_CENTRED = re.compile(r"red_1x1|local_rep\.(conv_1x1|1)\.|pre_norm_ffn\.(3|4)\.|^classifier\.|fusion")


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    leaf = name.rsplit(".", 1)[-1]
    if ".norm." in name:
        return _BATCH_NORM[leaf]
    if len(shape) > 1:
        gain = next(gain for pattern, gain in _GAINS if re.search(pattern, name))
        half = _SQRT_3 * gain / math.sqrt(math.prod(shape[1:]))
        return -half, half
    if leaf == "weight":
        return _LAYER_NORM_WEIGHT
    if re.search(r"(pre_norm_(mha|attn|ffn)\.0|global_rep\.\d+)\.bias$", name):
        return _LAYER_NORM_BIAS
    return _BRANCH_BIAS if re.search(r"\.1\.out_proj|pre_norm_ffn\.[34]\.", name) else _BIAS


def make_tensor(seed: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one tensor by Apple's name: the same bits on every machine.

    Odd integers from a frozen generator, scaled once; the sums are sums of exact integers.
    """
    if name.endswith("num_batches_tracked"):
        return np.array(100, dtype=np.int64)
    uniform = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode())).random_sample(math.prod(shape))
    odd = np.floor(uniform * 2**24) * 2.0 + (1.0 - 2**24)
    low, high = _range(name, shape)
    middle, half = (low + high) / 2, (high - low) / 2
    if len(shape) > 1 and _CENTRED.search(name):
        fan_in = float(math.prod(shape[1:]))
        odd = odd.reshape(shape[0], -1)
        values = (odd * fan_in - odd.sum(axis=1, keepdims=True)) * (half / (2**24 * fan_in))
    else:
        values = odd * (half / 2**24) + middle
    return values.reshape(shape).astype(np.float32)


@lru_cache(maxsize=1)
def _apple_state_dict(variant: str) -> dict[str, np.ndarray]:
    about = manifest()[variant]
    return {name: make_tensor(about["seed"], name, tuple(shape)) for name, shape in about["tensors"]}


_TO_TRANSFORMERS = (
    (r"^conv_1\.", "conv_stem."),
    (r"^classifier\.(fc|1)\.", "classifier."),
    (r"^layer_([12])\.(\d)\.block\.", r"encoder.layer.\1.layer.\2."),
    (r"^layer_(\d)\.0\.block\.", r"encoder.layer.\1.downsampling_layer."),
    (r"^layer_(\d)\.1\.", r"encoder.layer.\1."),
    (r"\bexp_1x1\.", "expand_1x1."),
    (r"\bred_1x1\.", "reduce_1x1."),
    (r"\blocal_rep\.(conv_3x3|0)\.", "conv_kxk."),
    (r"\blocal_rep\.(conv_1x1|1)\.", "conv_1x1."),
    (r"\bconv_proj\.", "conv_projection."),
    (r"\bglobal_rep\.\d\.(weight|bias)$", r"layernorm.\1"),
    (r"\bglobal_rep\.(\d)\.", r"transformer.layer.\1."),
    (r"\bpre_norm_(mha|attn)\.0\.", "layernorm_before."),
    (r"\bpre_norm_mha\.1\.out_proj\.", "attention.output.dense."),
    (r"\bpre_norm_attn\.1\.", "attention."),
    (r"\bpre_norm_ffn\.0\.", "layernorm_after."),
    (r"\bpre_norm_ffn\.1\.block\.", "ffn.conv1.block."),
    (r"\bpre_norm_ffn\.3\.block\.", "ffn.conv2.block."),
    (r"\bpre_norm_ffn\.1\.", "intermediate.dense."),
    (r"\bpre_norm_ffn\.4\.", "output.dense."),
    (r"\bblock\.conv\.", "convolution."),
    (r"\bblock\.norm\.", "normalization."),
)
_TO_TIMM = (
    (r"^conv_1\.", "stem."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"^classifier\.(fc|1)\.", "head.fc."),
    (r"^layer_(\d)\.(\d)\.block\.", r"stages.\1.\2."),
    (r"^layer_(\d)\.(\d)\.", r"stages.\1.\2."),
    (r"\bexp_1x1\.", "conv1_1x1."),
    (r"(stages\.\d\.\d)\.conv_3x3\.", r"\1.conv2_kxk."),
    (r"\bred_1x1\.", "conv3_1x1."),
    (r"\blocal_rep\.(conv_3x3|0)\.", "conv_kxk."),
    (r"\blocal_rep\.(conv_1x1|1)\.block\.conv\.", "conv_1x1."),
    (r"(stages\.\d\.\d)\.fusion\.", r"\1.conv_fusion."),
    (r"\bglobal_rep\.\d\.(weight|bias)$", r"norm.\1"),
    (r"\bglobal_rep\.(\d)\.", r"transformer.\1."),
    (r"\bpre_norm_(mha|attn)\.0\.", "norm1."),
    (r"\bpre_norm_mha\.1\.qkv_proj\.", "attn.qkv."),
    (r"\bpre_norm_mha\.1\.out_proj\.", "attn.proj."),
    (r"\bpre_norm_attn\.1\.(\w+)\.block\.conv\.", r"attn.\1."),
    (r"\bpre_norm_ffn\.0\.", "norm2."),
    (r"\bpre_norm_ffn\.1\.(block\.conv\.)?", "mlp.fc1."),
    (r"\bpre_norm_ffn\.[34]\.(block\.conv\.)?", "mlp.fc2."),
    (r"\bblock\.conv\.", "conv."),
    (r"\bblock\.norm\.", "bn."),
)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    # Apple counts stages from 1, the others from 0.
    return re.sub(r"^(encoder\.layer|stages)\.(\d)", lambda m: f"{m[1]}.{int(m[2]) - 1}", name)


def new_names(variant: str, name: str, scheme: str) -> list[str]:
    """Names of Apple's tensor `name` in a scheme; three where transformers splits query, key and value."""
    if scheme == "cvnets":
        return [name]
    if scheme == "timm":
        return [_rename(name, _TO_TIMM)]
    new = _rename(name, _TO_TRANSFORMERS)
    prefix = "" if new.startswith("classifier.") else ("mobilevit." if "v2" not in variant else "mobilevitv2.")
    parts = ("query", "key", "value") if "pre_norm_mha.1.qkv_proj" in name else ("",)
    return [prefix + new.replace("pre_norm_mha.1.qkv_proj", f"attention.attention.{part}") for part in parts]


def state_dict(variant: str, scheme: str = "transformers") -> dict[str, np.ndarray]:
    """All tensors of a variant, named and laid out as in `"cvnets"`, `"timm"` or `"transformers"`."""
    result = {}
    for name, value in _apple_state_dict(variant).items():
        names = new_names(variant, name, scheme)
        for new, part in zip(names, np.split(value, len(names)) if len(names) > 1 else [value], strict=True):
            result[new] = part
    if scheme == "timm" and manifest()[variant]["version"] == 1:
        result["stem.conv.weight"] = np.ascontiguousarray(result["stem.conv.weight"][:, ::-1])
    return result


def sha256(tensors: dict[str, np.ndarray]) -> str:
    """Hash of names, dtypes, shapes and little-endian bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}|{value.dtype.name}|{','.join(map(str, value.shape))}\n".encode())
        digest.update(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def config(variant: str) -> dict:
    """Content of the `config.json` of a variant, with the keys that the Hub's files have."""
    about = manifest()[variant]
    labels = {str(i): f"class_{i}" for i in range(about["num_classes"])}
    shared = {
        "classifier_dropout_prob": 0.1,
        "conv_kernel_size": 3,
        "id2label": labels,
        "image_size": 256,
        "initializer_range": 0.02,
        "label2id": {label: int(i) for i, label in labels.items()},
        "layer_norm_eps": 1e-5,
        "mlp_ratio": 2.0,
        "num_channels": 3,
        "output_stride": 32,
        "patch_size": 2,
        "torch_dtype": "float32",
    }
    if about["version"] == 2:
        return shared | {
            "architectures": ["MobileViTV2ForImageClassification"],
            "attn_dropout": 0.0,
            "base_attn_unit_dims": [128, 192, 256],
            "expand_ratio": 2.0,
            "ffn_dropout": 0.0,
            "ffn_multiplier": 2,
            "hidden_act": "swish",
            "model_type": "mobilevitv2",
            "n_attn_blocks": [2, 4, 3],
            "width_multiplier": float(about["size"]),
        }
    hidden, neck, expand = {
        "xxs": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
        "xs": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
        "s": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
    }[about["size"]]
    return shared | {
        "architectures": ["MobileViTForImageClassification"],
        "attention_probs_dropout_prob": 0.0,
        "expand_ratio": expand,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.05 if about["size"] == "xxs" else 0.1,
        "hidden_sizes": hidden,
        "model_type": "mobilevit",
        "neck_hidden_sizes": neck,
        "num_attention_heads": 4,
        "qkv_bias": True,
    }


# --------------------------------------------------------------------------------------------------
# Inputs
# --------------------------------------------------------------------------------------------------


def make_input(kinds: list[tuple[str, int]], height: int, width: int) -> np.ndarray:
    """A float32 batch `(n, 3, height, width)`, one image for each `(kind, seed)`."""
    make = {"noise": _noise, "photo": _photo}
    return np.stack([make[kind](seed, height, width) for kind, seed in kinds])


def _noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.RandomState(seed).random_sample((3, height, width)).astype(np.float32)


def _photo(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth patches, an edge and a little noise; all values are k / 255."""
    random = np.random.RandomState(seed)
    image = np.zeros((3, height, width))
    tint = random.random_sample((3, 1, 1))
    for cells, amplitude in ((2, 0.5), (5, 0.3), (11, 0.2), (29, 0.1)):
        grid = random.random_sample((3, cells + 1, cells + 1))
        grid = grid * 0.4 + random.random_sample((1, cells + 1, cells + 1)) * 0.6
        row, down = _between(height, cells + 1)
        column, right = _between(width, cells + 1)
        rows = grid[:, row, :] * (1.0 - down)[None, :, None] + grid[:, row + 1, :] * down[None, :, None]
        patches = rows[:, :, column] * (1.0 - right)[None, None, :] + rows[:, :, column + 1] * right[None, None, :]
        image = image + (patches - 0.5) * (2.0 * amplitude)
    y = (np.arange(height) / height)[:, None]
    x = (np.arange(width) / width)[None, :]
    a, b, c = random.random_sample(3)
    edge = x * (a - 0.5) + y * (b - 0.5) > (a + b - 1.0) * 0.25 + (c - 0.5) * 0.1
    image = image + (edge * 0.5 - 0.25)[None]
    image = image * 0.6 + tint * 0.6 + 0.2 + (random.random_sample((3, height, width)) - 0.5) * 0.04
    image = np.minimum(np.maximum(image, 0.0), 1.0)
    return (np.floor(image * 255.0 + 0.5) / 255.0).astype(np.float32)


def _between(pixels: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the grid point before it and its distance from there."""
    position = (np.arange(pixels) + 0.5) * ((points - 1) / pixels)
    index = np.minimum(position.astype(np.int64), points - 2)
    return index, position - index


# --------------------------------------------------------------------------------------------------
# Cases
# --------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One stored run: an input and the arrays that came out, each with its tolerance.

    `compare` takes whole arrays under their plain names (`logits`, `layer_3`, `features`, `loss`,
    `grads`, `buffers`; the last two are dicts by Apple's names) and reduces them as the stored ones were reduced.
    """

    variant: str
    id: str
    entry: dict
    implementation: str

    @property
    def source(self) -> str:
        """The implementation whose arrays are stored."""
        return self.entry["impls"][self.implementation].get("same_as", self.implementation)

    @property
    def specs(self) -> dict[str, dict]:
        """How each stored array was reduced, and its tolerance."""
        return self.entry["impls"][self.source]["arrays"]

    @property
    def labels(self) -> list[int]:
        """Class indices of a training case."""
        return self.entry["labels"]

    def input(self) -> np.ndarray:
        """The images, `(n, 3, H, W)` float32."""
        return make_input(self.entry["input"], *self.entry["size"])

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored arrays."""
        with np.load(FOLDER / f"{self.variant}.npz") as stored:
            return {name: stored[f"{self.id}/{self.source}/{name}"] for name in self.specs}

    def compare(self, got: dict) -> dict[str, tuple[float, float]]:
        """`(figure, tolerance)` of every stored array; a missing one is an error.

        The figure is `max |got - reference| / mean |reference|`; for gradient norms the worst
        relative difference.
        """
        rows = {}
        for name, reference in self.arrays().items():
            spec = self.specs[name]
            value = _reduce(got[spec.get("of", name)], spec)
            difference = _relative if spec.get("reduce") == "norms" else figure
            rows[name] = (difference(value, reference), spec["tol"])
        return rows

    def check(self, got: dict) -> None:
        """Raises `AssertionError` with the figures unless all arrays are within their tolerances."""
        rows = self.compare(got)
        if not rows or any(not value <= tolerance for value, tolerance in rows.values()):
            table = "\n".join(f"{name:30} {value:9.2e} of {tolerance:.0e}" for name, (value, tolerance) in rows.items())
            raise AssertionError(f"{self.variant} {self.id} against {self.source}:\n{table}")


def load_case(variant: str, case_id: str, implementation: str | None = None) -> Case:
    """One case; by default Apple's outputs with LayerNorm over the channels.

    Apple's later LayerNorm mistakes the tokens for channels where their numbers are equal. The
    published version 1 weights were trained without that branch, and these cases hold both.
    """
    entry = manifest()[variant]["cases"][case_id]
    plain = "cvnets_channel_last" if "cvnets_channel_last" in entry["impls"] else "cvnets"
    return Case(variant, case_id, entry, implementation or plain)


def case_ids(kind: str, variants: tuple[str, ...] = VARIANTS) -> list[tuple[str, str]]:
    """`(variant, case id)` of all cases of a kind: `"logits"`, `"features"` or `"train"`."""
    return [(v, i) for v in variants for i in manifest()[v]["cases"] if i.startswith(kind)]


def figure(got: np.ndarray, reference: np.ndarray) -> float:
    """`max |got - reference| / mean |reference|`; infinite for another shape or values that are not finite."""
    got, reference = np.asarray(got, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if got.shape != reference.shape or not np.isfinite(got).all():
        return math.inf
    return float(np.abs(got - reference).max() / np.abs(reference).mean())


def _relative(got: np.ndarray, reference: np.ndarray) -> float:
    """Worst relative difference of norms; small ones count against 1 % of the mean."""
    if got.shape != reference.shape or not np.isfinite(got).all():
        return math.inf
    return float((np.abs(got - reference) / (reference + 0.01 * reference.mean())).max())


def _reduce(value, spec: dict) -> np.ndarray:
    how = spec.get("reduce")
    if how == "mean":
        return np.asarray(value, dtype=np.float64).mean(axis=(2, 3))
    if how == "sample":
        value = np.ascontiguousarray(value)
        if list(value.shape) != spec["shape"]:
            return np.full(1, np.nan)
        positions = np.arange(min(spec["count"], value.size), dtype=np.int64)
        return value.reshape(-1)[positions if value.size <= spec["count"] else positions * 1000003 % value.size]
    if how == "rows":
        return np.asarray(value)[:, :: spec["step"]]
    if how == "norms":
        return np.array([np.linalg.norm(np.asarray(value[name], dtype=np.float64)) for name in spec["names"]])
    if how == "concat":
        return np.concatenate([np.asarray(value[name]).reshape(-1) for name in spec["names"]])
    return np.asarray(value)
