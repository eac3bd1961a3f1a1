"""Tensor names: those of other libraries turned into ours, and ours paired with the weights of a network.

`timm_names` yields one `Rename` per tensor of theirs, generated from the structure of the network. Our
names are those of transformers. `fit_tensors` pairs strictly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .errors import CheckpointError
from .tensors import listed

HEADS = ("classifier.", "segmentation_head.", "detection_head.")
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Rename(NamedTuple):
    """One tensor of theirs and the one or several of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    flip_input: bool = False
    """Whether its input channels are reversed (RGB there, BGR here)."""


def timm_names(config: Any) -> Iterator[Rename]:
    """timm's classifier names for a MobileViT or MobileViTv2 config.

    timm keeps version 1 stems in RGB order, Apple and this package in BGR (facts of the published
    files); version 2 is RGB everywhere.
    """
    version_1 = config.model_type == "mobilevit"
    prefix = config.model_type

    def unit(theirs: str, ours: str, conv: str = "conv", flip: bool = False) -> Iterator[Rename]:
        """A convolution with its batch normalisation."""
        yield Rename(f"{theirs}.{conv}.weight", (f"{ours}.convolution.weight",), flip)
        for part in NORM_PARTS:
            yield Rename(f"{theirs}.bn.{part}", (f"{ours}.normalization.{part}",))

    def pair(theirs: str, *ours: str) -> Iterator[Rename]:
        """Weight and bias of one layer of theirs, which may be several layers of ours."""
        for part in ("weight", "bias"):
            yield Rename(f"{theirs}.{part}", tuple(f"{name}.{part}" for name in ours))

    def inverted_residual(theirs: str, ours: str) -> Iterator[Rename]:
        if config.expand_ratio != 1:
            yield from unit(f"{theirs}.conv1_1x1", f"{ours}.expand_1x1")
        yield from unit(f"{theirs}.conv2_kxk", f"{ours}.conv_3x3")
        yield from unit(f"{theirs}.conv3_1x1", f"{ours}.reduce_1x1")

    def transformer_layer(theirs: str, ours: str) -> Iterator[Rename]:
        yield from pair(f"{theirs}.norm1", f"{ours}.layernorm_before")
        if version_1:
            attention = f"{ours}.attention.attention"
            if config.qkv_bias:
                yield from pair(f"{theirs}.attn.qkv", *(f"{attention}.{n}" for n in ("query", "key", "value")))
            else:
                yield Rename(
                    f"{theirs}.attn.qkv.weight", tuple(f"{attention}.{n}.weight" for n in ("query", "key", "value"))
                )
            yield from pair(f"{theirs}.attn.proj", f"{ours}.attention.output.dense")
            feed_forward = (f"{ours}.intermediate.dense", f"{ours}.output.dense")
        else:
            yield from pair(f"{theirs}.attn.qkv_proj", f"{ours}.attention.qkv_proj.convolution")
            yield from pair(f"{theirs}.attn.out_proj", f"{ours}.attention.out_proj.convolution")
            feed_forward = (f"{ours}.ffn.conv1.convolution", f"{ours}.ffn.conv2.convolution")
        yield from pair(f"{theirs}.norm2", f"{ours}.layernorm_after")
        yield from pair(f"{theirs}.mlp.fc1", feed_forward[0])
        yield from pair(f"{theirs}.mlp.fc2", feed_forward[1])

    yield from unit("stem", f"{prefix}.conv_stem", flip=version_1)
    for stage, blocks in ((0, 1), (1, 3 if version_1 else 2)):
        for i in range(blocks):
            yield from inverted_residual(f"stages.{stage}.{i}", f"{prefix}.encoder.layer.{stage}.layer.{i}")
    for stage, layers in zip((2, 3, 4), config.n_attn_blocks, strict=True):
        theirs, ours = f"stages.{stage}.1", f"{prefix}.encoder.layer.{stage}"
        yield from inverted_residual(f"stages.{stage}.0", f"{ours}.downsampling_layer")
        yield from unit(f"{theirs}.conv_kxk", f"{ours}.conv_kxk")
        yield Rename(f"{theirs}.conv_1x1.weight", (f"{ours}.conv_1x1.convolution.weight",))
        for j in range(layers):
            yield from transformer_layer(f"{theirs}.transformer.{j}", f"{ours}.transformer.layer.{j}")
        yield from pair(f"{theirs}.norm", f"{ours}.layernorm")
        yield from unit(f"{theirs}.conv_proj", f"{ours}.conv_projection")
        if version_1 and config.use_fusion:
            yield from unit(f"{theirs}.conv_fusion", f"{ours}.fusion")
    if version_1:
        yield from unit("final_conv", f"{prefix}.conv_1x1_exp")
    yield from pair("head.fc", "classifier")


def rename_tensors(
    tensors: dict[str, np.ndarray], renames: Iterator[Rename], path: Any = None
) -> dict[str, np.ndarray]:
    """Turns tensors under their names into tensors under ours.

    Batch counters may be absent. Tensors of one layer of theirs that is several of ours are cut along
    the first axis.

    Raises:
        CheckpointError: A tensor is missing or left over, or cannot be cut evenly.
    """
    left, missing = dict(tensors), []
    result: dict[str, np.ndarray] = {}
    for theirs, ours, flip in renames:
        if theirs not in left:
            if not theirs.endswith("num_batches_tracked"):
                missing.append(theirs)
            continue
        tensor = left.pop(theirs)
        if tensor.ndim and tensor.shape[0] % len(ours):
            raise CheckpointError(
                f"{path}: tensor {theirs!r} has {tensor.shape[0]} rows, which is no multiple of {len(ours)}.",
                path=path,
                field=theirs,
                mismatched=[theirs],
            )
        if flip:
            tensor = np.ascontiguousarray(tensor[:, ::-1])
        parts = np.split(tensor, len(ours)) if len(ours) > 1 else [tensor]
        result.update(zip(ours, parts, strict=True))
    if missing or left:
        names = [f"{len(missing)} missing ({', '.join(missing[:5])})"] if missing else []
        names += [f"{len(left)} unexpected ({', '.join(sorted(left)[:5])})"] if left else []
        raise CheckpointError(
            f"{path}: the tensors are not those of a timm MobileViT of this size: {'; '.join(names)}.",
            path=path,
            missing=missing,
            unexpected=sorted(left),
        )
    return result


# --------------------------------------------------------------------------------------------------
# Names and shapes that fit a network
# --------------------------------------------------------------------------------------------------


@dataclass
class LoadReport:
    """What became of the tensors of a file; every list is empty after a strict load."""

    missing: list[str] = field(default_factory=list)
    """Weights of the network that the file does not have; they keep their initial values."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors of the file that have no place in the network."""
    mismatched: list[str] = field(default_factory=list)
    """Tensors of another shape than the network's, as text with both shapes."""
    new_head: list[str] = field(default_factory=list)
    """Weights of the classifier that was replaced on purpose."""
    dtype: str = "float32"
    """Number type of the file; bfloat16 is read as float32, which holds the same values."""


def fit_tensors(
    tensors: dict[str, np.ndarray],
    wanted: dict[str, tuple[int, ...]],
    *,
    path: Any,
    model_name: str,
    prefix: str,
    new_head: bool = False,
    strict: bool = True,
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Pairs the tensors of a file with the weights of a network, each used once and each filled.

    Three things may differ on purpose, and nothing else: a network without a head leaves the file's
    head (and version 1's last convolution) aside; the names may lack or carry the base prefix; a new
    head keeps its initial values when `new_head` says so.

    Args:
        tensors: What the file holds, by our names.
        wanted: Name and shape of every weight of the network.
        path: The file, for messages.
        model_name: Class of the network, for messages.
        prefix: `"mobilevit"` or `"mobilevitv2"`.
        new_head: Whether the head is replaced.
        strict: Raise on any difference; otherwise leave out what does not fit and report it.

    Raises:
        CheckpointError: With the lists of missing, unexpected and mismatched names.
    """
    tensors = _match_prefix(tensors, wanted, prefix)
    wanted_heads = {name for name in wanted if name.startswith(HEADS)}
    if not wanted_heads:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(HEADS)}
    if not any("conv_1x1_exp." in name for name in wanted):
        tensors = {name: t for name, t in tensors.items() if "conv_1x1_exp." not in name}
    types = {str(t.dtype) for t in tensors.values() if t.dtype.kind == "f"}
    report = LoadReport(dtype="/".join(sorted(types)))
    result = {}
    for name, shape in wanted.items():
        if name in wanted_heads and new_head:
            report.new_head.append(name)
            tensors.pop(name, None)
            continue
        if name not in tensors:
            if not name.endswith("num_batches_tracked"):
                report.missing.append(name)
            continue
        tensor = tensors.pop(name)
        if name.endswith("num_batches_tracked") and tensor.size == 1:
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            report.mismatched.append(f"{name} (found {list(tensor.shape)}, expected {list(shape)})")
            continue
        result[name] = tensor
    report.unexpected = sorted(tensors)
    if strict and (report.missing or report.unexpected or report.mismatched):
        needed = sum(not name.endswith("num_batches_tracked") for name in wanted)
        raise _does_not_fit(report, needed, path, model_name)
    return result, report


def _match_prefix(tensors: dict[str, np.ndarray], wanted: Iterable[str], prefix: str) -> dict[str, np.ndarray]:
    """Adds or removes the base model's prefix where file and network disagree on it."""
    dot, wanted = f"{prefix}.", set(wanted)
    if any(name.startswith(dot) and name.removeprefix(dot) in wanted for name in tensors):
        return {name.removeprefix(dot): tensor for name, tensor in tensors.items()}
    if any(dot + name in wanted for name in tensors):
        return {name if name.startswith(HEADS) else dot + name: tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _does_not_fit(report: LoadReport, count: int, path: Any, model_name: str) -> CheckpointError:
    lists = {"missing": report.missing, "unexpected": report.unexpected, "wrong shape": report.mismatched}
    summary = ", ".join(f"{len(names)} {what}" for what, names in lists.items() if names)
    details = "; ".join(f"{what}: {listed(names)}" for what, names in lists.items() if names)
    hint = ""
    if any(name.startswith(HEADS) for name in [*report.missing, *report.mismatched]):
        hint = " For a new classifier pass num_labels=."
    if len(report.missing) > 0.9 * count:
        hint = f" Nearly nothing fits: wrong model family?{_guess_family(report.unexpected)}"
    elif any(n.startswith("segmentation_head.") for n in report.unexpected):
        hint = " This looks like a segmentation checkpoint."
    return CheckpointError(
        f"{path}: the weights do not fit {model_name}: {summary}. {details}.{hint}",
        path=path,
        missing=report.missing,
        unexpected=report.unexpected,
        mismatched=report.mismatched,
    )


def _guess_family(names: list[str]) -> str:
    """What a file seems to be, from its tensor names."""
    signs = {
        "mobilevit.": "MobileViT version 1",
        "mobilevitv2.": "MobileViTv2",
        "stages.": "timm's",
        "layer_1.": "Apple's",
        "encoder.conv_1.": "Apple's (detection or segmentation)",
        "layer1.": "a ResNet's",
        "vit.": "a ViT's",
    }
    for start, family in signs.items():
        if any(name.startswith(start) for name in names):
            return f" The names look like {family}."
    return ""
