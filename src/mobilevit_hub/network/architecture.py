"""What the networks of both frameworks agree on and is not tensor code: channel rounding, strides, dilations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputError

STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")


def feature_names(names: Sequence[str] | None, indices: Sequence[int] | None = None) -> list[str]:
    """Feature maps that are asked for by name or by number, in the order of the network; default: the last.

    Raises:
        InputError: There is no such map, or both are given.
    """
    if names is not None and indices is not None:
        raise InputError("Give out_features or out_indices, not both.", field="out_features")
    if indices is not None:
        if not all(type(i) is int and -6 <= i < 6 for i in indices):
            raise InputError(
                f"out_indices is {indices!r}; expected numbers from 0 (the stem) to 5.",
                field="out_indices",
                found=indices,
            )
        names = [STAGE_NAMES[i] for i in indices]
    names = list(names or [STAGE_NAMES[-1]])
    if unknown := [name for name in names if name not in STAGE_NAMES]:
        raise InputError(
            f"out_features has {unknown[0]!r}; expected names from {', '.join(STAGE_NAMES)}.",
            field="out_features",
            found=unknown[0],
        )
    return sorted(names, key=STAGE_NAMES.index)


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
