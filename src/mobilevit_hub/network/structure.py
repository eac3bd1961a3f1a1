"""The layers of a network, with our names and the shapes of their tensors, from a config and without building it.

Heads for segmentation and detection are there as well, for the names and counts of published files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from .architecture import make_divisible

HEADS = ("classifier.", "segmentation_head.", "detection_head.")
"""Where the names of tensors start that are not the encoder's."""
Head = Literal["classifier", "deeplabv3", "pspnet", "ssdlite"]
COUNTER = "num_batches_tracked"
"""The batch counter of a norm, which has no effect and which some libraries do not write."""
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", COUNTER)


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
        for (_, _, shape), names in zip(tensors_of(part), our_names(config, part), strict=True)
        for name in names
    }


def tensors_of(part: Part) -> list[tuple[str, str, tuple[int, ...]]]:
    """Group, last part of the name, and shape of each tensor of a part; of one layer, where it is several with us."""
    rows = part.shape[:1]
    if part.kind == "conv_norm":
        norm = [("norm", leaf, () if leaf == COUNTER else rows) for leaf in NORM_PARTS]
        return [("conv", "weight", part.shape), *norm]
    group = "single_conv" if part.kind == "conv" else ""
    return [(group, "weight", part.shape), *([(group, "bias", rows)] if part.bias else [])]


def is_head(part: Part) -> bool:
    """Whether a part stands behind the encoder."""
    return f"{part.name}.".startswith(HEADS)


def our_names(config: Any, part: Part) -> list[tuple[str, ...]]:
    """Our names of each tensor of a part."""
    prefix = "" if is_head(part) else f"{config.model_type}."
    name = prefix + part.name.format(**part.at)
    groups = {"conv": "convolution.", "norm": "normalization.", "single_conv": "convolution.", "": ""}
    return [tuple(f"{name}{end}.{groups[group]}{leaf}" for end in part.split) for group, leaf, _ in tensors_of(part)]
