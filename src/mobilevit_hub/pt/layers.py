"""Layers that both versions of the network share.

Shapes use the same letters everywhere: B images, C channels, H × W a feature map, P pixels per patch,
N patches per map. Attribute names that hold weights are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every PyTorch reader knows

from ..errors import InputError
from ..network.architecture import make_divisible

ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and activation; the last two are optional.

    Zero padding is explicit and symmetric, `dilation * (kernel_size - 1) // 2` on all four sides,
    at stride 2 as well.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, in pixels.
        stride: Step in pixels.
        dilation: Distance between kernel taps in pixels.
        groups: 1, or `in_channels` for a depthwise convolution.
        bias: Whether the convolution has a bias.
        norm: Whether batch normalisation follows (epsilon 1e-5, momentum 0.1).
        activation: A name from the config's `hidden_act`, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=(kernel_size - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.normalization = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1) if norm else None
        self.activation = ACTIVATIONS[activation]() if activation else None

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in_channels, H, W)` to `(B, out_channels, H / stride, W / stride)`, rounded up."""
        features = self.convolution(features)
        if self.normalization is not None:
            features = self.normalization(features)
        if self.activation is not None:
            features = self.activation(features)
        return features


class InvertedResidual(nn.Module):
    """MobileNetV2 block: 1×1 expansion, 3×3 depthwise, 1×1 reduction without activation.

    The input is added when the block changes neither size nor channels. Without widening
    (`expand_ratio` 1) there is no expansion layer.
    """

    def __init__(self, config: Any, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * config.expand_ratio), 8)
        act = config.hidden_act
        self.use_residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = ConvNormAct(in_channels, hidden, activation=act) if config.expand_ratio != 1 else None
        self.conv_3x3 = ConvNormAct(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, activation=act)
        self.reduce_1x1 = ConvNormAct(hidden, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in_channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        residual = features
        if self.expand_1x1 is not None:
            features = self.expand_1x1(features)
        features = self.reduce_1x1(self.conv_3x3(features))
        return residual + features if self.use_residual else features


class InvertedResidualStage(nn.Module):
    """Stages 1 and 2: inverted residuals, the first of which carries the stride."""

    def __init__(self, config: Any, in_channels: int, out_channels: int, *, stride: int, num_blocks: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            InvertedResidual(
                config, in_channels if i == 0 else out_channels, out_channels, stride=stride if i == 0 else 1
            )
            for i in range(num_blocks)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps `(B, in_channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        for block in self.layer:
            features = block(features)
        return features


def unfold_patches(features: Tensor, patch_size: int) -> Tensor:
    """Groups the pixels that stand at the same place of their patches.

    Works on rank 4 at most, so that exporters accept it, and reads the map channels-last, so that a
    token's channels lie together in memory.

    Args:
        features: `(B, C, H, W)`; `H` and `W` must be multiples of `patch_size`.
        patch_size: Side of a square patch, in map pixels.

    Returns:
        `(B, P, N, C)`: place in the patch (row-major), then patch (row-major), then channel.
        `fold_patches` is the exact inverse.
    """
    b, c, h, w = features.shape
    rows, columns = h // patch_size, w // patch_size
    tokens = features.permute(0, 2, 3, 1)
    if patch_size == 1:
        return tokens.reshape(b, 1, h * w, c)
    tokens = tokens.reshape(b * h, columns, patch_size, c).transpose(1, 2)
    tokens = tokens.reshape(b, rows, patch_size**2, columns * c).transpose(1, 2)
    return tokens.reshape(b, patch_size**2, rows * columns, c)


def fold_patches(tokens: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Puts tokens `(B, P, N, C)` back to their pixels: the inverse of `unfold_patches`.

    Returns:
        `(B, C, height, width)`, channels-last in memory.
    """
    b, area, _, c = tokens.shape
    rows, columns = height // patch_size, width // patch_size
    if patch_size == 1:
        return tokens.reshape(b, height, width, c).permute(0, 3, 1, 2)
    features = tokens.reshape(b, area, rows, columns * c).transpose(1, 2)
    features = features.reshape(b * height, patch_size, columns, c).transpose(1, 2)
    return features.reshape(b, height, width, c).permute(0, 3, 1, 2)


def resize_to_patch_multiple(features: Tensor, patch_size: int, *, align_corners: bool) -> Tensor:
    """Enlarges a map whose sides are not multiples of the patch to the next multiples, bilinearly."""
    height, width = features.shape[-2:]
    new_height = -(-height // patch_size) * patch_size
    new_width = -(-width // patch_size) * patch_size
    if (new_height, new_width) == (height, width):
        return features
    return F.interpolate(features, size=(new_height, new_width), mode="bilinear", align_corners=align_corners)


def check_pixel_values(pixel_values: Any, num_channels: int) -> None:
    """Refuses anything but `(B, num_channels, H, W)` floating point images of at least 32 pixels a side."""
    if not isinstance(pixel_values, Tensor):
        raise InputError(
            f"pixel_values is {type(pixel_values).__name__}; expected a float tensor of shape "
            f"(B, {num_channels}, H, W), as the image processor returns.",
            field="pixel_values",
        )
    shape = tuple(pixel_values.shape)
    if pixel_values.dim() != 4 or shape[1] != num_channels:
        hint = " It looks channels-last: permute it to channels-first." if shape[-1:] == (num_channels,) else ""
        raise InputError(
            f"pixel_values has shape {shape}; expected (B, {num_channels}, H, W).{hint}",
            field="pixel_values",
            found=shape,
        )
    if not torch.is_floating_point(pixel_values):
        raise InputError(
            f"pixel_values has dtype {pixel_values.dtype}; expected floats in [0, 1]. Use the image processor, "
            "or divide by 255.",
            field="pixel_values",
        )
    if min(shape[2:]) < 32:
        raise InputError(
            f"Images of {shape[2]}×{shape[3]} pixels are too small; MobileViT needs at least 32 per side.",
            field="pixel_values",
            found=shape[2:],
            expected=32,
        )
    if shape[0] == 0:
        raise InputError("pixel_values holds no image (batch size 0).", field="pixel_values", found=shape)
