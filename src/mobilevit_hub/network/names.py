"""Tensor names of MobileViT in every library that publishes it.

A `Scheme` says how another library calls each part of `structure`, whose names are those of transformers and ours;
`renames` follows the structure of a config through it, and both directions of a conversion use that one table.

    >>> table = list(renames(config, "cvnets"))
    >>> table[0]
    Rename(theirs='conv_1.block.conv.weight', ours=('mobilevit.conv_stem.convolution.weight',), …)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, listed
from .structure import COUNTER, Head, is_head, our_names, parts, tensors_of


class Scheme(NamedTuple):
    """How a library names the parts of a network."""

    title: str
    """As messages call it."""
    tables: dict[str, dict[str, str]]
    """Per version, their name of each of our parts."""
    conv: str
    """What stands before `.weight` in a convolution with a norm."""
    norm: str
    """What stands before `.weight` in that norm."""
    single_conv: str
    """What stands before `.weight` in a convolution without a norm."""
    encoder: str = ""
    """What stands before the names of the encoder in networks that are no classifiers."""
    takes_rgb: bool = False
    """Whether the library feeds RGB to every network; otherwise the order belongs to the weights, as with us."""


_STAGE, _LAYER = "encoder.layer.{stage}", "encoder.layer.{stage}.transformer.layer.{layer}"

_CVNETS = {
    "conv_stem": "conv_1",
    f"{_STAGE}.layer.{{block}}.expand_1x1": "layer_{apple_stage}.{block}.block.exp_1x1",
    f"{_STAGE}.layer.{{block}}.conv_3x3": "layer_{apple_stage}.{block}.block.conv_3x3",
    f"{_STAGE}.layer.{{block}}.reduce_1x1": "layer_{apple_stage}.{block}.block.red_1x1",
    f"{_STAGE}.downsampling_layer.expand_1x1": "layer_{apple_stage}.0.block.exp_1x1",
    f"{_STAGE}.downsampling_layer.conv_3x3": "layer_{apple_stage}.0.block.conv_3x3",
    f"{_STAGE}.downsampling_layer.reduce_1x1": "layer_{apple_stage}.0.block.red_1x1",
    f"{_STAGE}.layernorm": "layer_{apple_stage}.1.global_rep.{layers}",
    f"{_STAGE}.conv_projection": "layer_{apple_stage}.1.conv_proj",
    f"{_LAYER}.layernorm_after": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_ffn.0",
    # Segmenters and detectors.
    "segmentation_head.auxiliary.conv": "seg_head.aux_head.0",
    "segmentation_head.auxiliary.classifier": "seg_head.aux_head.2",
    "segmentation_head.aspp.convs.{branch}": "seg_head.aspp.aspp_layer.convs.{branch}",
    "segmentation_head.aspp.convs.4.conv_1x1": "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1",
    "segmentation_head.aspp.project": "seg_head.aspp.aspp_layer.project",
    "segmentation_head.psp.branches.{branch}": "seg_head.psp_layer.psp_branches.{branch}.1",
    "segmentation_head.psp.fusion": "seg_head.psp_layer.fusion.0",
    "segmentation_head.classifier": "seg_head.classifier",
    "detection_head.extra_layers.{layer}.depthwise": "extra_layers.os_{stride}.dw_conv",
    "detection_head.extra_layers.{layer}.pointwise": "extra_layers.os_{stride}.pw_conv",
    "detection_head.extra_layers.3": "extra_layers.os_-1.1",
    "detection_head.heads.{index}.projection": "ssd_heads.{index}.proj_layer",
    "detection_head.heads.{index}.depthwise": "ssd_heads.{index}.loc_cls_layer.dw_conv",
    "detection_head.heads.{index}.pointwise": "ssd_heads.{index}.loc_cls_layer.pw_conv",
    "detection_head.heads.5.pointwise": "ssd_heads.5.loc_cls_layer",
}
_CVNETS_V1 = _CVNETS | {
    f"{_STAGE}.conv_kxk": "layer_{apple_stage}.1.local_rep.conv_3x3",
    f"{_STAGE}.conv_1x1": "layer_{apple_stage}.1.local_rep.conv_1x1",
    f"{_LAYER}.layernorm_before": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_mha.0",
    f"{_LAYER}.attention.attention": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_mha.1.qkv_proj",
    f"{_LAYER}.attention.output.dense": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_mha.1.out_proj",
    f"{_LAYER}.intermediate.dense": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_ffn.1",
    f"{_LAYER}.output.dense": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_ffn.4",
    f"{_STAGE}.fusion": "layer_{apple_stage}.1.fusion",
    "conv_1x1_exp": "conv_1x1_exp",
    "classifier": "classifier.fc",
}
_CVNETS_V2 = _CVNETS | {
    f"{_STAGE}.conv_kxk": "layer_{apple_stage}.1.local_rep.0",
    f"{_STAGE}.conv_1x1": "layer_{apple_stage}.1.local_rep.1",
    f"{_LAYER}.layernorm_before": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_attn.0",
    f"{_LAYER}.attention.qkv_proj": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_attn.1.qkv_proj",
    f"{_LAYER}.attention.out_proj": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_attn.1.out_proj",
    f"{_LAYER}.ffn.conv1": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_ffn.1",
    f"{_LAYER}.ffn.conv2": "layer_{apple_stage}.1.global_rep.{layer}.pre_norm_ffn.3",
    "classifier": "classifier.1",
}
_CVNETS_01_HEAD = {"segmentation_head.classifier": "seg_head.classifier.classifier"}
_TIMM = {
    "conv_stem": "stem",
    f"{_STAGE}.layer.{{block}}.expand_1x1": "stages.{stage}.{block}.conv1_1x1",
    f"{_STAGE}.layer.{{block}}.conv_3x3": "stages.{stage}.{block}.conv2_kxk",
    f"{_STAGE}.layer.{{block}}.reduce_1x1": "stages.{stage}.{block}.conv3_1x1",
    f"{_STAGE}.downsampling_layer.expand_1x1": "stages.{stage}.0.conv1_1x1",
    f"{_STAGE}.downsampling_layer.conv_3x3": "stages.{stage}.0.conv2_kxk",
    f"{_STAGE}.downsampling_layer.reduce_1x1": "stages.{stage}.0.conv3_1x1",
    f"{_STAGE}.conv_kxk": "stages.{stage}.1.conv_kxk",
    f"{_STAGE}.conv_1x1": "stages.{stage}.1.conv_1x1",
    f"{_LAYER}.layernorm_before": "stages.{stage}.1.transformer.{layer}.norm1",
    f"{_LAYER}.layernorm_after": "stages.{stage}.1.transformer.{layer}.norm2",
    f"{_STAGE}.layernorm": "stages.{stage}.1.norm",
    f"{_STAGE}.conv_projection": "stages.{stage}.1.conv_proj",
    "classifier": "head.fc",
}
_TIMM_V1 = _TIMM | {
    f"{_LAYER}.attention.attention": "stages.{stage}.1.transformer.{layer}.attn.qkv",
    f"{_LAYER}.attention.output.dense": "stages.{stage}.1.transformer.{layer}.attn.proj",
    f"{_LAYER}.intermediate.dense": "stages.{stage}.1.transformer.{layer}.mlp.fc1",
    f"{_LAYER}.output.dense": "stages.{stage}.1.transformer.{layer}.mlp.fc2",
    f"{_STAGE}.fusion": "stages.{stage}.1.conv_fusion",
    "conv_1x1_exp": "final_conv",
}
_TIMM_V2 = _TIMM | {
    f"{_LAYER}.attention.qkv_proj": "stages.{stage}.1.transformer.{layer}.attn.qkv_proj",
    f"{_LAYER}.attention.out_proj": "stages.{stage}.1.transformer.{layer}.attn.out_proj",
    f"{_LAYER}.ffn.conv1": "stages.{stage}.1.transformer.{layer}.mlp.fc1",
    f"{_LAYER}.ffn.conv2": "stages.{stage}.1.transformer.{layer}.mlp.fc2",
}

SCHEMES: dict[str, Scheme] = {
    "cvnets": Scheme(
        "Apple's ml-cvnets",
        {"mobilevit": _CVNETS_V1, "mobilevitv2": _CVNETS_V2},
        conv="block.conv.", norm="block.norm.", single_conv="block.conv.", encoder="encoder.",
    ),
    # The first release named one part of the segmenters differently.
    "cvnets-0.1": Scheme(
        "Apple's ml-cvnets 0.1",
        {"mobilevit": _CVNETS_V1 | _CVNETS_01_HEAD, "mobilevitv2": _CVNETS_V2 | _CVNETS_01_HEAD},
        conv="block.conv.", norm="block.norm.", single_conv="block.conv.", encoder="encoder.",
    ),
    "timm": Scheme(
        "timm",
        {"mobilevit": _TIMM_V1, "mobilevitv2": _TIMM_V2},
        conv="conv.", norm="bn.", single_conv="", takes_rgb=True,
    ),
}  # fmt: skip


class Rename(NamedTuple):
    """One tensor of theirs and the one or several of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    """Several where we have several layers; their rows stand below each other in that order."""
    shape: tuple[int, ...]
    """Shape of theirs."""
    flip_input: bool = False
    """Whether its input channels are reversed (RGB there, BGR here)."""


def renames(
    config: Any, scheme: str, head: Head | None = "classifier", *, auxiliary: bool = False, bgr: bool | None = None
) -> Iterator[Rename]:
    """All tensors of a network under the names of a scheme and under ours.

    Args:
        config: A `MobileViTConfig` or `MobileViTV2Config`.
        scheme: One of `SCHEMES`.
        head: As for `parts`.
        auxiliary: As for `parts`.
        bgr: Whether the weights take BGR with us; the stem is reversed for a library that takes RGB. Default: as
            Apple's do, version 1 of the first release BGR, version 2 RGB.

    Raises:
        KeyError: The scheme has no names for this head.
    """
    about = SCHEMES[scheme]
    table = about.tables[config.model_type]
    encoder = "" if head in (None, "classifier") else about.encoder
    flips = about.takes_rgb and (config.model_type == "mobilevit" if bgr is None else bgr)
    for part in parts(config, head, auxiliary=auxiliary):
        theirs = ("" if is_head(part) else encoder) + table[part.name].format(**part.at)
        for (group, leaf, shape), ours in zip(tensors_of(part), our_names(config, part), strict=True):
            before = {"conv": about.conv, "norm": about.norm, "single_conv": about.single_conv, "": ""}[group]
            rows = tuple(len(ours) * size if axis == 0 else size for axis, size in enumerate(shape))
            yield Rename(f"{theirs}.{before}{leaf}", ours, rows, flips and group == "conv" and part.name == "conv_stem")


def to_ours(
    tensors: dict[str, np.ndarray], table: Iterable[Rename], path: Any = None, title: str = "its library"
) -> dict[str, np.ndarray]:
    """Turns tensors under their names into tensors under ours, to the bit.

    Args:
        tensors: What a file holds.
        table: All renames of the network; batch counters may be absent.
        path: The file, for messages.
        title: Whose names they are, for messages.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape; the message lists them.
    """
    left, missing, mismatched = dict(tensors), [], []
    result: dict[str, np.ndarray] = {}
    for theirs, ours, shape, flip in table:
        if theirs not in left:
            if not theirs.endswith(COUNTER):
                missing.append(theirs)
            continue
        tensor = left.pop(theirs)
        if theirs.endswith(COUNTER) and tensor.size == 1:
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            mismatched.append(f"{theirs} (found {list(tensor.shape)}, expected {list(shape)})")
            continue
        result.update(zip(ours, np.split(_flipped(tensor, flip), len(ours)) if shape else [tensor], strict=True))
    if missing or left or mismatched:
        lists = {"missing": missing, "unexpected": left, "wrong shape": mismatched}
        found = "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in lists.items() if names)
        raise CheckpointError(
            f"{path}: the tensors are not those of a MobileViT of this size as {title} names them: {found}.",
            path=path,
            missing=missing,
            unexpected=sorted(left),
            mismatched=mismatched,
        )
    return result


def to_theirs(tensors: dict[str, np.ndarray], table: Iterable[Rename]) -> dict[str, np.ndarray]:
    """Turns tensors under our names into tensors under theirs, in their order: the inverse of `to_ours`.

    Args:
        tensors: All weights of a network by our names; batch counters may be absent.
        table: All renames of the network.

    Raises:
        CheckpointError: A tensor is missing or left over.
    """
    left, missing = dict(tensors), []
    result: dict[str, np.ndarray] = {}
    for theirs, ours, _, flip in table:
        lacking = [name for name in ours if name not in left]
        values = [left.pop(name) for name in ours if name in left]
        if lacking:
            missing += [name for name in lacking if not name.endswith(COUNTER)]
            continue
        result[theirs] = _flipped(np.concatenate(values) if len(values) > 1 else values[0], flip)
    if missing or left:
        raise CheckpointError(
            f"The weights are not those of the network that the config describes: {len(missing)} missing "
            f"({listed(missing)}), {len(left)} unexpected ({listed(left)}).",
            missing=missing,
            unexpected=sorted(left),
        )
    return result


def _flipped(kernel: np.ndarray, flip: bool) -> np.ndarray:
    """A convolution's kernel with its input channels reversed."""
    return np.ascontiguousarray(kernel[:, ::-1]) if flip else kernel
