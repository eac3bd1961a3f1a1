"""The network folded for inference, as plain arrays: fewer layers that compute the same.

Exact rewrites of a copy of the weights:

- BatchNorm goes into the kernel and bias of its convolution;
- scale and shift of a norm go into the linear layer that reads it;
- version 1: one matrix product for query, key and value, with the scale of the attention in the query;
- version 2: the key is projected after the pooling, where one vector per place is left of N: the weights of the pooling
  sum to 1, so the key of the pooled token is the pooled key. For the same reason the query's bias has no effect.

What is here needs neither a framework nor transformers. Plain PyTorch, the C++ kernels, TensorFlow and the phone's
graph interpret it, each in its own operations. This form is not trained and not saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from ..network.architecture import downsampling_rules

BATCH_NORM_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with its BatchNorm folded in, and its activation. It pads with zeros, alike on all sides."""

    weight: np.ndarray
    """`(out, in, side, side)`, or `(channels, 1, side, side)` of a depthwise one."""
    bias: np.ndarray
    stride: int
    dilation: int
    depthwise: bool
    activation: str | None
    """`"silu"`, `"relu"`, `"gelu"` or None."""

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return (self.weight.shape[2] - 1) // 2 * self.dilation

    @property
    def linear(self) -> Linear:
        """A pointwise one as what it does to the channels of a pixel, without its activation."""
        return Linear(self.weight[:, :, 0, 0], self.bias)


@dataclass(frozen=True, eq=False)
class Linear:
    """`x @ weight.T + bias` on the last axis, and its activation."""

    weight: np.ndarray
    """`(out, in)`"""
    bias: np.ndarray
    activation: str | None = None

    def after(self, scale: np.ndarray, shift: np.ndarray) -> Linear:
        """Takes in the scale and shift of the norm that is applied just before."""
        weight = self.weight.astype(np.float64)
        return replace(self, weight=weight * scale, bias=self.bias + weight @ shift)

    def without_mean(self) -> Linear:
        """Subtracts the mean over the output channels."""
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        return replace(self, weight=weight - weight.mean(0), bias=bias - bias.mean())

    def rows(self, start: int, stop: int | None) -> Linear:
        """Only some outputs."""
        return replace(self, weight=self.weight[start:stop], bias=self.bias[start:stop])


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of tokens `(B, P, N, C)` without its scale and shift."""

    epsilon: float
    jointly: bool
    """Whether an image has one mean and deviation (GroupNorm with one group), or each token its own."""


@dataclass(frozen=True, eq=False)
class InvertedResidual:
    """Expansion, depthwise convolution and reduction."""

    expand: Convolution | None
    depthwise: Convolution
    reduce: Convolution
    use_residual: bool


@dataclass(frozen=True, eq=False)
class Version1Layer:
    """Norm, `qkv`, attention, `out`, added to the tokens; norm, `first`, `second`, added to the tokens."""

    heads: int
    norm: Norm
    qkv: Linear
    out: Linear
    first: Linear
    second: Linear


@dataclass(frozen=True, eq=False)
class Version2Layer:
    """Norm; tokens are pooled by the softmax of `query`; `value`, times the pooled `key`, goes through `out`.

    Then norm, `first`, `second`, as in version 1.
    """

    norm: Norm
    query: Linear
    """One output, whose bias has no effect."""
    key: Linear
    value: Linear
    out: Linear
    first: Linear
    second: Linear


@dataclass(frozen=True, eq=False)
class Version1Block:
    """A MobileViT block and the inverted residual before it.

    A map that is no multiple of the patch is resized for the transformer (corners not aligned) and back before the
    activation.
    """

    patch_size: int
    downsampling: InvertedResidual
    conv_kxk: Convolution
    conv_1x1: Convolution
    layers: list[Version1Layer]
    norm: Norm
    projection: Linear
    activation: str | None
    """What follows the projection."""
    fusion: Convolution | None
    """Of the block's input and the projection; None: the projection is the result."""


@dataclass(frozen=True, eq=False)
class Version2Block:
    """A MobileViTv2 block and the inverted residual before it."""

    patch_size: int
    odd_map: str
    """Of a map that is no multiple of the patch: `"apple"` resizes it for good (corners aligned); `"stock"` leaves out
    what fills no patch, where the projection then has `rest`."""
    downsampling: InvertedResidual
    conv_kxk: Convolution
    conv_1x1: Convolution
    layers: list[Version2Layer]
    norm: Norm
    projection: Linear
    rest: np.ndarray
    """What the projection makes of zeros."""


@dataclass(frozen=True, eq=False)
class FoldedNetwork:
    """A classifier as one chain: stem, stages, in version 1 the last convolution; then the mean, and the classifier."""

    config: Any
    """What it was made from: a `network.fields.Network`, or a config."""
    features: list[Convolution | InvertedResidual | Version1Block | Version2Block]
    classifier: Linear | None
    """None: the features are the result."""


def stride_of(layer: Any) -> int:
    """By how much an entry of `features` makes the map smaller."""
    return layer.stride if isinstance(layer, Convolution) else getattr(layer, "downsampling", layer).depthwise.stride


def is_record(value: Any) -> bool:
    """Whether it is one of the classes of this file."""
    return is_dataclass(value) and type(value).__module__ == __name__


def records_in(value: Any) -> Iterator[Any]:
    """Every record inside a folded network, itself included."""
    if isinstance(value, list):
        for item in value:
            yield from records_in(item)
    elif is_record(value):
        yield value
        for field in fields(value):
            yield from records_in(getattr(value, field.name))


def with_arrays(value: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The same with a function applied to every array."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, list):
        return [with_arrays(item, function) for item in value]
    if is_record(value):
        return replace(value, **{f.name: with_arrays(getattr(value, f.name), function) for f in fields(value)})
    return value


def float32(record: Any) -> Any:
    """The same with every array in float32."""
    return with_arrays(record, lambda array: np.ascontiguousarray(array, np.float32))


def fold(config: Any, tensors: Mapping[str, np.ndarray]) -> FoldedNetwork:
    """Folds a classifier. Products are computed in float64, and kept in float32.

    Args:
        config: A `network.fields.Network`, or a `MobileViTConfig` or `MobileViTV2Config`.
        tensors: Its weights by our names, as `network.structure.tensor_shapes` lists them.
    """
    return _Folding(config, tensors).network()


class _Folding:
    """Makes the records of a network from its tensors; `name` is where a layer stands."""

    def __init__(self, config: Any, tensors: Mapping[str, np.ndarray]) -> None:
        self.config, self.tensors = config, tensors
        self.activation = {"swish": "silu"}.get(config.hidden_act, config.hidden_act)
        version_1 = config.model_type == "mobilevit"
        self.norm = Norm(config.layer_norm_eps, jointly=not version_1 and config.attn_norm == "group")

    def array(self, name: str) -> np.ndarray:
        return self.tensors[name].astype(np.float64)

    def network(self) -> FoldedNetwork:
        config, prefix = self.config, f"{self.config.model_type}."
        version_1 = config.model_type == "mobilevit"
        stages: list[Any] = [self.convolution(f"{prefix}conv_stem", stride=2)]
        for stage, blocks in ((0, 1), (1, 3 if version_1 else 2)):
            strides = [stage + 1, 1, 1]
            names = [f"{prefix}encoder.layer.{stage}.layer.{block}" for block in range(blocks)]
            stages += [self.inverted_residual(*pair) for pair in zip(names, strides, strict=False)]
        block = self.version_1_block if version_1 else self.version_2_block
        stages += [block(f"{prefix}encoder.layer.{stage}", stage - 2) for stage in (2, 3, 4)]
        if version_1:
            stages.append(self.convolution(f"{prefix}conv_1x1_exp"))
        return FoldedNetwork(config, stages, self.linear("classifier") if config.num_labels else None)

    def convolution(
        self, name: str, *, stride: int = 1, dilation: int = 1, depthwise: bool = False, activate: bool = True
    ) -> Convolution:
        weight = self.array(f"{name}.convolution.weight")
        bias = self.bias(f"{name}.convolution", len(weight))
        norm = f"{name}.normalization"
        if f"{norm}.weight" in self.tensors:
            variance = self.array(f"{norm}.running_var")
            scale = self.array(f"{norm}.weight") / np.sqrt(variance + BATCH_NORM_EPSILON)
            weight = weight * scale[:, None, None, None]
            bias = self.array(f"{norm}.bias") + (bias - self.array(f"{norm}.running_mean")) * scale
        return float32(Convolution(weight, bias, stride, dilation, depthwise, self.activation if activate else None))

    def bias(self, name: str, count: int) -> np.ndarray:
        return self.array(f"{name}.bias") if f"{name}.bias" in self.tensors else np.zeros(count)

    def linear(self, name: str, norm: str | None = None, activation: str | None = None) -> Linear:
        """A linear layer, or a pointwise convolution, and the norm before it."""
        if f"{name}.convolution.weight" in self.tensors:
            layer = self.convolution(name).linear
        else:
            weight = self.array(f"{name}.weight")
            layer = Linear(weight, self.bias(name, len(weight)))
        if norm is not None:
            layer = layer.after(self.array(f"{norm}.weight"), self.array(f"{norm}.bias"))
        return float32(replace(layer, activation=activation))

    def inverted_residual(self, name: str, stride: int, dilation: int = 1) -> InvertedResidual:
        wide = self.config.expand_ratio != 1
        expand = self.convolution(f"{name}.expand_1x1") if wide else None
        depthwise = self.convolution(f"{name}.conv_3x3", stride=stride, dilation=dilation, depthwise=True)
        reduce = self.convolution(f"{name}.reduce_1x1", activate=False)
        inputs = (expand or depthwise).weight.shape[1 if wide else 0]
        return InvertedResidual(expand, depthwise, reduce, stride == 1 and inputs == len(reduce.weight))

    def version_1_layer(self, name: str, width: int) -> Version1Layer:
        before, after, attention = (f"{name}.layernorm_before", f"{name}.layernorm_after", f"{name}.attention")
        heads = self.config.heads(width)
        query, key, value = (self.linear(f"{attention}.attention.{x}", before) for x in ("query", "key", "value"))
        scale = (width // heads) ** -0.5
        weights, biases = [query.weight * scale, key.weight, value.weight], [query.bias * scale, key.bias, value.bias]
        qkv = float32(Linear(np.concatenate(weights), np.concatenate(biases)))
        out = self.linear(f"{attention}.output.dense")
        first = self.linear(f"{name}.intermediate.dense", after, self.activation)
        return Version1Layer(heads, self.norm, qkv, out, first, self.linear(f"{name}.output.dense"))

    def version_1_block(self, name: str, i: int) -> Version1Block:
        config = self.config
        rule, width = downsampling_rules(config.output_stride)[i], config.hidden_sizes[i]
        layers = [f"{name}.transformer.layer.{layer}" for layer in range(config.n_attn_blocks[i])]
        return Version1Block(
            config.patch_sizes[i],
            self.inverted_residual(f"{name}.downsampling_layer", rule.stride, rule.dilation),
            self.convolution(f"{name}.conv_kxk"),
            self.convolution(f"{name}.conv_1x1", activate=False),
            [self.version_1_layer(layer, width) for layer in layers],
            self.norm,
            self.linear(f"{name}.conv_projection", f"{name}.layernorm"),
            self.activation,
            self.convolution(f"{name}.fusion") if config.use_fusion else None,
        )

    def version_2_layer(self, name: str, width: int) -> Version2Layer:
        after = f"{name}.layernorm_after"
        qkv = self.linear(f"{name}.attention.qkv_proj", f"{name}.layernorm_before")
        return Version2Layer(
            self.norm,
            qkv.rows(0, 1),
            qkv.rows(1, 1 + width),
            replace(qkv.rows(1 + width, None), activation="relu"),
            self.linear(f"{name}.attention.out_proj"),
            self.linear(f"{name}.ffn.conv1", after, self.activation),
            self.linear(f"{name}.ffn.conv2"),
        )

    def version_2_block(self, name: str, i: int) -> Version2Block:
        config = self.config
        rule, width = downsampling_rules(config.output_stride)[i], config.hidden_sizes[i]
        layers = [f"{name}.transformer.layer.{layer}" for layer in range(config.n_attn_blocks[i])]
        return Version2Block(
            config.patch_sizes[i],
            config.odd_map,
            self.inverted_residual(f"{name}.downsampling_layer", rule.stride, rule.dilation),
            self.convolution(f"{name}.conv_kxk", dilation=rule.block_dilation, depthwise=True),
            self.convolution(f"{name}.conv_1x1", activate=False),
            [self.version_2_layer(layer, width) for layer in layers],
            self.norm,
            self.linear(f"{name}.conv_projection", f"{name}.layernorm"),
            self.linear(f"{name}.conv_projection").bias,
        )
