"""Tensor names of MobileViT in every library that publishes it, generated from a config without a network.

`parts` walks the structure of a network once, with the names of transformers, which are ours. A `Scheme` says how
another library calls each part; `renames` follows the walk through it, and both directions of a conversion use
that one table. Heads for segmentation and detection are named as well.

    >>> table = list(renames(config, "cvnets"))
    >>> table[0]
    Rename(theirs='conv_1.block.conv.weight', ours=('mobilevit.conv_stem.convolution.weight',), …)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from .architecture import make_divisible
from .errors import CheckpointError
from .tensors import listed

HEADS = ("classifier.", "segmentation_head.", "detection_head.")
"""Where the names of tensors start that are not the encoder's."""
Head = Literal["classifier", "deeplabv3", "pspnet", "ssdlite"]
COUNTER = "num_batches_tracked"
"""The batch counter of a norm, which has no effect and which some libraries do not write."""
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", COUNTER)


# --------------------------------------------------------------------------------------------------
# The structure
# --------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """One layer of a network."""

    name: str
    """Our name with places for the numbers in `at`, such as `"encoder.layer.{stage}.conv_kxk"`."""
    kind: Literal["conv_norm", "conv", "layer"]
    """A convolution with its batch norm, a convolution, or a linear layer or norm over tokens."""
    shape: tuple[int, ...]
    """Shape of its weight."""
    at: dict[str, int]
    """`stage` from 0, `apple_stage` from 1, `block`, `layer`, `layers` of the stage, as far as they apply."""
    bias: bool = True
    """Whether it has a bias; a convolution with a norm never has."""
    split: tuple[str, ...] = ("",)
    """Endings of the layers that it is with us, where others have one."""


def parts(config: Any, head: Head | None = "classifier", *, auxiliary: bool = False) -> Iterator[Part]:
    """The layers of a network in the order of its checkpoints.

    Args:
        config: A `MobileViTConfig` or `MobileViTV2Config`. Segmentation heads have `num_labels` classes and
            DeepLabv3 `aspp_out_channels` channels; the detector has `num_labels` classes and the background.
        head: What follows the encoder; None: nothing.
        auxiliary: Whether the segmenter has the second head that is used in training only.
    """
    version_1 = config.model_type == "mobilevit"
    channels = config.stage_channels
    yield Part("conv_stem", "conv_norm", (channels[0], config.num_channels, 3, 3), {})
    for stage, blocks in ((0, 1), (1, 3 if version_1 else 2)):
        for block in range(blocks):
            at = {"stage": stage, "apple_stage": stage + 1, "block": block}
            width = channels[stage] if block == 0 else channels[stage + 1]
            yield from _inverted_residual(config, "encoder.layer.{stage}.layer.{block}", width, channels[stage + 1], at)
    for stage in (2, 3, 4):
        yield from _mobilevit_block(config, stage)
    if version_1 and head in (None, "classifier"):
        yield Part("conv_1x1_exp", "conv_norm", (config.neck_hidden_sizes[6], channels[5], 1, 1), {})
    if head == "classifier":
        features = config.neck_hidden_sizes[6] if version_1 else channels[5]
        if config.num_labels:  # without labels a network ends with its features
            yield Part("classifier", "layer", (config.num_labels, features), {})
    elif head == "ssdlite":
        yield from _ssdlite(config)
    elif head is not None:
        yield from _segmenter(config, head, auxiliary)


def _inverted_residual(config: Any, name: str, before: int, after: int, at: dict[str, int]) -> Iterator[Part]:
    hidden = make_divisible(round(before * config.expand_ratio), 8)
    if config.expand_ratio != 1:
        yield Part(f"{name}.expand_1x1", "conv_norm", (hidden, before, 1, 1), at)
    yield Part(f"{name}.conv_3x3", "conv_norm", (hidden, 1, 3, 3), at)
    yield Part(f"{name}.reduce_1x1", "conv_norm", (after, hidden, 1, 1), at)


def _mobilevit_block(config: Any, stage: int) -> Iterator[Part]:
    version_1 = config.model_type == "mobilevit"
    before, channels = config.stage_channels[stage : stage + 2]
    width, layers, kernel = config.hidden_sizes[stage - 2], config.n_attn_blocks[stage - 2], config.conv_kernel_size
    block = "encoder.layer.{stage}"
    at = {"stage": stage, "apple_stage": stage + 1, "layers": layers}
    yield from _inverted_residual(config, f"{block}.downsampling_layer", before, channels, at)
    # Depthwise in version 2.
    yield Part(f"{block}.conv_kxk", "conv_norm", (channels, channels if version_1 else 1, kernel, kernel), at)
    yield Part(f"{block}.conv_1x1", "conv", (width, channels, 1, 1), at, bias=False)
    for layer in range(layers):
        name, here = f"{block}.transformer.layer.{{layer}}", at | {"layer": layer}
        yield Part(f"{name}.layernorm_before", "layer", (width,), here)
        if version_1:
            hidden = int(width * config.mlp_ratio)
            split = (".query", ".key", ".value")
            attention = f"{name}.attention.attention"
            yield Part(attention, "layer", (width, width), here, bias=config.qkv_bias, split=split)
            yield Part(f"{name}.attention.output.dense", "layer", (width, width), here)
            yield Part(f"{name}.layernorm_after", "layer", (width,), here)
            yield Part(f"{name}.intermediate.dense", "layer", (hidden, width), here)
            yield Part(f"{name}.output.dense", "layer", (width, hidden), here)
        else:
            hidden = config.ffn_size(width)
            yield Part(f"{name}.attention.qkv_proj", "conv", (1 + 2 * width, width, 1, 1), here)
            yield Part(f"{name}.attention.out_proj", "conv", (width, width, 1, 1), here)
            yield Part(f"{name}.layernorm_after", "layer", (width,), here)
            yield Part(f"{name}.ffn.conv1", "conv", (hidden, width, 1, 1), here)
            yield Part(f"{name}.ffn.conv2", "conv", (width, hidden, 1, 1), here)
    yield Part(f"{block}.layernorm", "layer", (width,), at)
    yield Part(f"{block}.conv_projection", "conv_norm", (channels, width, 1, 1), at)
    if version_1 and config.use_fusion:
        yield Part(f"{block}.fusion", "conv_norm", (channels, 2 * channels, kernel, kernel), at)


def _segmenter(config: Any, head: Head, auxiliary: bool) -> Iterator[Part]:
    """DeepLabv3 or PSPNet on the last stage, and the auxiliary head on the one before."""
    *_, before, features = config.stage_channels
    if auxiliary:
        width = max(before // 4, 128)
        yield Part("segmentation_head.auxiliary.conv", "conv_norm", (width, before, 3, 3), {})
        yield Part("segmentation_head.auxiliary.classifier", "conv", (config.num_labels, width, 1, 1), {})
    if head == "deeplabv3":
        width = config.aspp_out_channels
        for branch, kernel in enumerate((1, 3, 3, 3)):
            shape = (width, features, kernel, kernel)
            yield Part("segmentation_head.aspp.convs.{branch}", "conv_norm", shape, {"branch": branch})
        yield Part("segmentation_head.aspp.convs.4.conv_1x1", "conv_norm", (width, features, 1, 1), {})
        yield Part("segmentation_head.aspp.project", "conv_norm", (width, 5 * width, 1, 1), {})
    else:
        width, branch_width = 512, features // 4 // 16 * 16
        for branch in range(4):
            shape = (branch_width, features, 1, 1)
            yield Part("segmentation_head.psp.branches.{branch}", "conv_norm", shape, {"branch": branch})
        yield Part("segmentation_head.psp.fusion", "conv_norm", (width, features + 4 * branch_width, 3, 3), {})
    yield Part("segmentation_head.classifier", "conv", (config.num_labels, width, 1, 1), {})


def _ssdlite(config: Any) -> Iterator[Part]:
    """Three strided layers and a global one behind the encoder, and a head for each of the six maps."""
    maps = [*config.stage_channels[4:], 256, 128, 128, 64]
    extra = "detection_head.extra_layers"
    for layer, stride in enumerate((64, 128, 256)):
        at, before, after = {"layer": layer, "stride": stride}, maps[layer + 1], maps[layer + 2]
        yield Part(f"{extra}.{{layer}}.depthwise", "conv_norm", (before, 1, 3, 3), at)
        yield Part(f"{extra}.{{layer}}.pointwise", "conv_norm", (after, before, 1, 1), at)
    yield Part(f"{extra}.3", "conv", (maps[5], maps[4], 1, 1), {}, bias=False)
    widths, outputs = (512, 256, 256, 128, 128, 64), 4 + config.num_labels + 1  # a box and the classes, per anchor
    for index, (before, width) in enumerate(zip(maps, widths, strict=True)):
        name, at = "detection_head.heads.{index}", {"index": index}
        if index == 5:  # one pixel: no neighbours to look at, and four anchors in place of six
            yield Part("detection_head.heads.5.pointwise", "conv", (4 * outputs, width, 1, 1), {})
            continue
        if before != width:
            yield Part(f"{name}.projection", "conv_norm", (width, before, 1, 1), at)
        yield Part(f"{name}.depthwise", "conv_norm", (width, 1, 3, 3), at)
        yield Part(f"{name}.pointwise", "conv", (6 * outputs, width, 1, 1), at)


# --------------------------------------------------------------------------------------------------
# The naming schemes
# --------------------------------------------------------------------------------------------------


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
    flips_version_1: bool = False
    """Whether version 1 takes RGB, where Apple's files and ours take BGR; version 2 takes RGB everywhere."""


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
        conv="conv.", norm="bn.", single_conv="", flips_version_1=True,
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


def renames(config: Any, scheme: str, head: Head | None = "classifier", *, auxiliary: bool = False) -> Iterator[Rename]:
    """All tensors of a network under the names of a scheme and under ours.

    Args:
        config: A `MobileViTConfig` or `MobileViTV2Config`.
        scheme: One of `SCHEMES`.
        head: As for `parts`.
        auxiliary: As for `parts`.

    Raises:
        KeyError: The scheme has no names for this head.
    """
    about = SCHEMES[scheme]
    table = about.tables[config.model_type]
    encoder = "" if head in (None, "classifier") else about.encoder
    flips = about.flips_version_1 and config.model_type == "mobilevit"
    for part in parts(config, head, auxiliary=auxiliary):
        theirs = ("" if _is_head(part) else encoder) + table[part.name].format(**part.at)
        for (group, leaf, shape), ours in zip(_tensors(part), _our_names(config, part), strict=True):
            before = {"conv": about.conv, "norm": about.norm, "single_conv": about.single_conv, "": ""}[group]
            rows = tuple(len(ours) * size if axis == 0 else size for axis, size in enumerate(shape))
            yield Rename(f"{theirs}.{before}{leaf}", ours, rows, flips and group == "conv" and part.name == "conv_stem")


def tensor_shapes(
    config: Any, head: Head | None = "classifier", *, auxiliary: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a network by our name, without building it.

    Args:
        config: A `MobileViTConfig` or `MobileViTV2Config`.
        head: As for `parts`.
        auxiliary: As for `parts`.
    """
    return {
        name: shape
        for part in parts(config, head, auxiliary=auxiliary)
        for (_, _, shape), names in zip(_tensors(part), _our_names(config, part), strict=True)
        for name in names
    }


def _tensors(part: Part) -> list[tuple[str, str, tuple[int, ...]]]:
    """Group, last part of the name, and shape of each tensor of a part; of one layer, where it is several with us."""
    rows = part.shape[:1]
    if part.kind == "conv_norm":
        norm = [("norm", leaf, () if leaf == COUNTER else rows) for leaf in NORM_PARTS]
        return [("conv", "weight", part.shape), *norm]
    group = "single_conv" if part.kind == "conv" else ""
    return [(group, "weight", part.shape), *([(group, "bias", rows)] if part.bias else [])]


def _is_head(part: Part) -> bool:
    return f"{part.name}.".startswith(HEADS)


def _our_names(config: Any, part: Part) -> list[tuple[str, ...]]:
    """Our names of each tensor of a part."""
    prefix = "" if _is_head(part) else f"{config.model_type}."
    name = prefix + part.name.format(**part.at)
    groups = {"conv": "convolution.", "norm": "normalization.", "single_conv": "convolution.", "": ""}
    return [tuple(f"{name}{end}.{groups[group]}{leaf}" for end in part.split) for group, leaf, _ in _tensors(part)]


# --------------------------------------------------------------------------------------------------
# Both directions
# --------------------------------------------------------------------------------------------------


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
