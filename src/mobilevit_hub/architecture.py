"""What the networks of both frameworks agree on and is not tensor code: channel rounding, strides, dilations."""

from __future__ import annotations

from typing import NamedTuple

FRAMEWORKS = ("pt", "tf")
"""PyTorch and Keras, as users name them."""
RUNTIMES = (*FRAMEWORKS, "tflite")
"""What runs a classifier: a framework, or LiteRT a `.tflite` file."""
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8")
"""Of `.tflite` files, the exactest first."""
TFLITE_INPUTS = ("uint8", "float32")
"""Types of the image that a `.tflite` file takes: 0 to 255, or 0 to 1."""
TFLITE_OUTPUTS = ("probabilities", "logits")
"""What a `.tflite` classifier returns, and the name of its output."""
STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Rounds a channel count to a multiple of `divisor` without losing more than 10 % (Apple's rule)."""
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class DownsamplingRule(NamedTuple):
    """How one of the three MobileViT stages treats space."""

    stride: int
    """Stride of the inverted residual that opens the stage."""
    dilation: int
    """Dilation of that inverted residual's depthwise convolution."""
    block_dilation: int
    """Dilation of the 3×3 convolution in the MobileViTV2 block; version 1 never dilates it."""


def downsampling_rules(output_stride: int) -> tuple[DownsamplingRule, ...]:
    """Strides and dilations of stages 3, 4 and 5 for an output stride of 8, 16 or 32.

    Apple's rule: stage 5 (and stage 4 for output stride 8) gives up its stride; its first
    convolution keeps the dilation so far, everything after it uses the doubled one.
    """
    rules, dilation = [], 1
    for stage in (3, 4, 5):
        if 2**stage <= output_stride:
            rules.append(DownsamplingRule(2, dilation, dilation))
        else:
            rules.append(DownsamplingRule(1, dilation, 2 * dilation))
            dilation *= 2
    return tuple(rules)
