"""Tensor names of other libraries, generated from the structure of the network.

`timm_names` yields one `Rename` per tensor of theirs. Our names are those of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .errors import CheckpointError

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
