"""What the networks of both frameworks agree on and is not tensor code: widths, rounding, strides, dilations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError, InputError
from ..rules import fail

MAX_PARAMETERS = 500_000_000
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


class _Widths:
    """What follows from the fields of a config, mixed into the configs of both versions."""

    stage_channels: Any
    """Channels of the stem and of stages 1 to 5."""
    hidden_sizes: Any
    """Width of the attention layers of stages 3, 4 and 5."""
    patch_size: Any
    output_stride: int
    expand_ratio: float
    n_attn_blocks: Any
    num_labels: int

    @property
    def patch_sizes(self) -> tuple[int, int, int]:
        """Patch side of stages 3, 4 and 5, in feature-map pixels."""
        size = self.patch_size
        return tuple(size) if isinstance(size, list | tuple) else (size,) * 3  # type: ignore[return-value]

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Down-sampling factor of the stem and of stages 1 to 5, in image pixels per map pixel."""
        return (2, 2, 4) + tuple(min(2**stage, self.output_stride) for stage in (3, 4, 5))

    def check_together(self) -> None:
        """Raises `ConfigError` where fields that are right alone do not fit each other."""
        count = sum(self._parameter_terms())
        if count > MAX_PARAMETERS:
            raise ConfigError(
                f"This config describes about {count / 1e6:,.0f} million parameters; "
                f"the limit is {MAX_PARAMETERS / 1e6:,.0f} million. Check the widths.",
                field="parameters",
                found=count,
                expected=MAX_PARAMETERS,
            )

    def _parameter_terms(self) -> Iterator[int]:
        """Sizes of the large weight matrices: enough to refuse a config that could never fit."""
        widths = self.stage_channels
        for before, after in itertools.pairwise(widths):
            yield int(before * self.expand_ratio * (before + after))
        yield widths[-1] * (self.num_labels or 0)


class Version1(_Widths):
    """Widths and heads of a MobileViT, from its fields."""

    model_type = "mobilevit"
    neck_hidden_sizes: Any
    num_attention_heads: int
    attention_head_size: int | None
    conv_kernel_size: int
    mlp_ratio: float
    use_fusion: bool

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the stem and of stages 1 to 5."""
        return tuple(self.neck_hidden_sizes[:6])

    def heads(self, width: int) -> int:
        """Number of attention heads of a transformer of this width."""
        name = "num_attention_heads" if self.attention_head_size is None else "attention_head_size"
        value = getattr(self, name)
        if width % value:
            raise fail(name, value, f"a divisor of each of hidden_sizes {list(self.hidden_sizes)}")
        return value if self.attention_head_size is None else width // value

    def check_together(self) -> None:
        """Raises `ConfigError` where fields that are right alone do not fit each other."""
        for width in self.hidden_sizes:
            self.heads(width)
        super().check_together()

    def _parameter_terms(self) -> Iterator[int]:
        yield from super()._parameter_terms()
        kernel = self.conv_kernel_size**2
        for width, channels, layers in zip(self.hidden_sizes, self.stage_channels[3:], self.n_attn_blocks, strict=True):
            yield int(layers * width * width * (4 + 2 * self.mlp_ratio))
            yield channels * channels * kernel * (3 if self.use_fusion else 1) + 2 * channels * width
        yield self.neck_hidden_sizes[5] * self.neck_hidden_sizes[6]


class Version2(_Widths):
    """Widths of a MobileViTv2, from its fields."""

    model_type = "mobilevitv2"
    width_multiplier: float
    base_attn_unit_dims: Any
    ffn_multiplier: float

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the stem and of stages 1 to 5 (paper, section 4; Apple's rounding)."""
        alpha = self.width_multiplier
        return (
            make_divisible(min(max(32 * alpha, 16), 64), divisor=8, minimum=16),
            make_divisible(64 * alpha, divisor=16),
            make_divisible(128 * alpha, divisor=8),
            make_divisible(256 * alpha, divisor=8),
            make_divisible(384 * alpha, divisor=8),
            make_divisible(512 * alpha, divisor=8),
        )

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Width of the attention layers of stages 3, 4 and 5."""
        return tuple(make_divisible(d * self.width_multiplier, divisor=8) for d in self.base_attn_unit_dims)

    def ffn_size(self, width: int) -> int:
        """Width of the feed-forward part of an attention layer, a multiple of 16."""
        return max(16, int(self.ffn_multiplier * width // 16 * 16))

    def check_together(self) -> None:
        """Raises `ConfigError` where fields that are right alone do not fit each other."""
        for i, dim in enumerate(self.base_attn_unit_dims):
            if dim % 8:
                raise fail(f"base_attn_unit_dims[{i}]", dim, "a multiple of 8")
        super().check_together()

    def _parameter_terms(self) -> Iterator[int]:
        yield from super()._parameter_terms()
        for width, channels, layers in zip(self.hidden_sizes, self.stage_channels[3:], self.n_attn_blocks, strict=True):
            yield int(layers * width * width * (3 + 2 * self.ffn_multiplier)) + 2 * channels * width
