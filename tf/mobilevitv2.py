"""MobileViTv2 in Keras: the twin of `mobilevit_hub.pt.mobilevitv2`.

Source: Separable Self-attention for Mobile Vision Transformers, arXiv 2206.02680. Read it top to
bottom: separable attention, transformer layer, MobileViTv2 block, network, heads.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mobilevit_hub.errors import InputError
from mobilevit_hub.network.architecture import downsampling_rules
from mobilevit_hub.network.configuration import MobileViTV2Config

from .heads import BackboneMixin, ClassifierMixin, FeaturesMixin
from .layers import (
    PACKAGE,
    Block,
    ConvNormAct,
    InvertedResidual,
    InvertedResidualStage,
    fold_patches,
    patch_multiple,
    resize,
    softmax,
    unfold_patches,
)
from .pretrained import HubModel
from .weights import Initializers, version_2_initializers


class GroupNorm1(keras.layers.Layer):
    """Group normalisation with one group, on `(B, P, N, width)`.

    Mean and variance over places, patches and channels of an image together, then scale and shift per
    channel. Written out, because Keras' own layer makes tensors of rank 5.
    """

    def __init__(self, epsilon: float, name: str | None = None) -> None:
        super().__init__(name=name)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes scale and shift."""
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(input_shape[-1],), initializer="zeros")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Keeps the shape."""
        return input_shape

    def call(self, tokens: Any) -> Any:
        """Keeps the shape."""
        exact = keras.backend.result_type(tokens.dtype, "float32")
        values = ops.cast(tokens, exact)
        mean, variance = ops.moments(values, axes=(1, 2, 3), keepdims=True)
        values = (values - mean) * ops.rsqrt(variance + self.epsilon)
        return ops.cast(values * ops.cast(self.gamma, exact) + ops.cast(self.beta, exact), self.compute_dtype)


def attention_norm(config: MobileViTV2Config, **options: Any) -> keras.layers.Layer:
    """The norm of the attention layers.

    Apple's is a GroupNorm with one group: mean and variance over channels, places and patches of an
    image together, which is not a LayerNorm per token.
    """
    if config.attn_norm == "layer":
        return keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, **options)
    return GroupNorm1(config.layer_norm_eps, **options)


class SeparableSelfAttention(Block):
    """Separable self-attention (paper, section 3.2): linear in the number of patches.

    One score per token, normalised over the patches, weighs the keys into one context vector per
    place; the context then gates every value.
    """

    def __init__(self, config: MobileViTV2Config, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.width = width
        self.qkv_proj = ConvNormAct(1 + 2 * width, bias=True, norm=False, name="qkv_proj")
        self.attn_dropout = keras.layers.Dropout(config.attn_dropout)
        self.out_proj = ConvNormAct(width, bias=True, norm=False, name="out_proj")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.qkv_proj.build(input_shape)
        self.out_proj.build(input_shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Keeps the shape."""
        return input_shape

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B, P, N, width)` to the same shape."""
        query, key, value = ops.split(self.qkv_proj(tokens), [1, 1 + self.width], axis=-1)
        context_scores = self.attn_dropout(softmax(query, axis=2), training=training)
        context_vector = ops.sum(key * context_scores, axis=2, keepdims=True)
        return self.out_proj(ops.relu(value) * context_vector)


class FeedForward(Block):
    """Two pointwise convolutions with an activation between them."""

    def __init__(self, config: MobileViTV2Config, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        settings: dict[str, Any] = {"bias": True, "norm": False}
        self.conv1 = ConvNormAct(config.ffn_size(width), activation=config.hidden_act, name="conv1", **settings)
        self.dropout1 = keras.layers.Dropout(config.ffn_dropout)
        self.conv2 = ConvNormAct(width, name="conv2", **settings)
        self.dropout2 = keras.layers.Dropout(config.hidden_dropout_prob)

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B, P, N, width)` to the same shape."""
        hidden = self.dropout1(self.conv1(tokens), training=training)
        return self.dropout2(self.conv2(hidden), training=training)


class TransformerLayer(Block):
    """Pre-norm layer: separable attention, then feed-forward, each added to its input."""

    def __init__(self, config: MobileViTV2Config, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layernorm_before = attention_norm(config, name="layernorm_before")
        self.attention = SeparableSelfAttention(config, width, name="attention")
        self.dropout1 = keras.layers.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = attention_norm(config, name="layernorm_after")
        self.ffn = FeedForward(config, width, name="ffn")

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B, P, N, width)` to the same shape."""
        attended = self.attention(self.layernorm_before(tokens), training=training)
        tokens = tokens + self.dropout1(attended, training=training)
        return tokens + self.ffn(self.layernorm_after(tokens), training=training)


class Transformer(Block):
    """A stack of transformer layers; their final norm belongs to the block."""

    def __init__(self, config: MobileViTV2Config, width: int, num_layers: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = [TransformerLayer(config, width, name=f"layer_{i}") for i in range(num_layers)]

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B, P, N, width)` to the same shape."""
        for layer in self.layer:
            tokens = layer(tokens, training=training)
        return tokens


class MobileViTV2Block(Block):
    """An inverted residual that downsamples, then the MobileViTv2 block (paper, section 3.3).

    Unlike version 1: the local convolution is depthwise and takes part in dilation, there is no
    fusion, the projection has no activation, and an odd map is enlarged before the block for good.
    """

    def __init__(self, config: MobileViTV2Config, stage: int, name: str | None = None) -> None:
        super().__init__(name=name)
        i = stage - 3
        in_channels, channels = config.stage_channels[stage - 1 : stage + 1]
        self.width = width = config.hidden_sizes[i]
        rule = downsampling_rules(config.output_stride)[i]
        self.patch_size, self.odd_map = config.patch_sizes[i], config.odd_map
        self.downsampling_layer = InvertedResidual(
            config, in_channels, channels, stride=rule.stride, dilation=rule.dilation,
            name="downsampling_layer",
        )  # fmt: skip
        self.conv_kxk = ConvNormAct(
            channels, config.conv_kernel_size, dilation=rule.block_dilation, depthwise=True,
            activation=config.hidden_act, name="conv_kxk",
        )  # fmt: skip
        self.conv_1x1 = ConvNormAct(width, norm=False, name="conv_1x1")
        self.transformer = Transformer(config, width, config.n_attn_blocks[i], name="transformer")
        self.layernorm = attention_norm(config, name="layernorm")
        self.conv_projection = ConvNormAct(channels, name="conv_projection")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.downsampling_layer.build(input_shape)
        channels = self.downsampling_layer.compute_output_shape(input_shape)[-1]
        for layer in (self.conv_kxk, self.conv_1x1):
            layer.build((None, None, None, channels))
        for layer in (self.transformer, self.layernorm, self.conv_projection):
            layer.build((None, None, None, self.width))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(B, H / stride, W / stride, channels)`, made a patch multiple."""
        batch, height, width, channels = self.downsampling_layer.compute_output_shape(input_shape)
        if self.odd_map == "apple":
            height, width = (s if s is None else patch_multiple(s, self.patch_size) for s in (height, width))
        return batch, height, width, channels

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, channels)`, made a patch multiple."""
        features = self.downsampling_layer(features, training=training)
        if self.odd_map == "apple":
            _, height, width, _ = ops.shape(features)
            height, width = patch_multiple(height, self.patch_size), patch_multiple(width, self.patch_size)
            features = resize(features, height, width, align_corners=True)
        features = self.conv_1x1(self.conv_kxk(features, training=training))
        return self.conv_projection(self.global_representation(features, training), training=training)

    def global_representation(self, features: Any, training: bool | None) -> Any:
        """Attention between the patches of a `(B, H, W, width)` map."""
        _, height, width, _ = ops.shape(features)
        # Only with odd_map="stock": transformers drops what does not fill a patch and puts zeros there.
        rows, columns = height % self.patch_size, width % self.patch_size
        height, width = height - rows, width - columns
        if isinstance(height, int) and isinstance(width, int) and min(height, width) == 0:
            raise InputError(
                f"The feature map is smaller than one patch of {self.patch_size} pixels, and "
                "odd_map='stock' does not enlarge it; use larger images or odd_map='apple'.",
                field="pixel_values",
            )
        if self.odd_map == "stock":
            features = features[:, :height, :width]
        tokens = unfold_patches(features, self.patch_size)
        tokens = self.layernorm(self.transformer(tokens, training=training))
        features = fold_patches(tokens, self.patch_size, height, width)
        return ops.pad(features, ((0, 0), (0, rows), (0, columns), (0, 0))) if self.odd_map == "stock" else features


def encoder_stages(config: MobileViTV2Config) -> list[Any]:
    """Stages 1 to 5."""
    channels = config.stage_channels
    return [
        InvertedResidualStage(config, channels[0], channels[1], stride=1, num_blocks=1, name="stage1"),
        InvertedResidualStage(config, channels[1], channels[2], stride=2, num_blocks=2, name="stage2"),
        *(MobileViTV2Block(config, stage, name=f"stage{stage}") for stage in (3, 4, 5)),
    ]


class TFMobileViTV2PreTrainedModel(HubModel):
    """What the MobileViTv2 models share: config class, loading, saving and initialisation."""

    config_class = MobileViTV2Config
    base_model_prefix = "mobilevitv2"

    @staticmethod
    def initializers(config: MobileViTV2Config) -> Initializers:
        """Apple's later releases, the code that made the version 2 weights."""
        return version_2_initializers()


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTV2Model(FeaturesMixin, TFMobileViTV2PreTrainedModel):
    """The network without a classifier: a functional Keras model.

    Maps `pixel_values` `(B, H, W, 3)`, floats in [0, 1] in the channel order of the checkpoint, to a
    dictionary: `last_hidden_state` `(B, h, w, C)` and `pooler_output` `(B, C)`.

    Args:
        config: What to build.
        expand_output: Whether the pooling belongs to it. (Version 2 has no last 1×1 convolution.)
        image_size: Side, or height and width, of the only size it takes; None: any size from 32 pixels.
        options: `name` and other arguments of `keras.Model`.
    """

    def __init__(
        self, config: MobileViTV2Config, expand_output: bool = True, image_size: Any = None, **options: Any
    ) -> None:
        super().__init__(
            config,
            encoder_stages(config),
            None,
            expand_output=expand_output,
            image_size=image_size,
            **options,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTV2ForImageClassification(ClassifierMixin, TFMobileViTV2PreTrainedModel):
    """MobileViTv2 with a linear classifier on the pooled features."""

    base_class = TFMobileViTV2Model


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTV2Backbone(BackboneMixin, TFMobileViTV2PreTrainedModel):
    """MobileViTv2 as a feature extractor: a dictionary of the maps named by `out_features`."""

    base_class = TFMobileViTV2Model
