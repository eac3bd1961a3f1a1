"""MobileViT (version 1) in Keras: the twin of `mobilevit_hub.pt.mobilevit`.

Source: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer,
arXiv 2110.02178. Read it top to bottom: attention, transformer layer, MobileViT block, network, heads.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mobilevit_hub.network.architecture import downsampling_rules
from mobilevit_hub.network.configuration import MobileViTConfig

from .heads import BackboneMixin, ClassifierMixin, FeaturesMixin
from .layers import (
    ACTIVATIONS,
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
from .weights import Initializers, version_1_initializers


class SelfAttention(Block):
    """Multi-head self-attention between the pixels that share a place in their patches."""

    def __init__(self, config: MobileViTConfig, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.width, self.heads = width, config.heads(width)
        settings = {"use_bias": config.qkv_bias}
        self.query = keras.layers.Dense(width, name="query", **settings)
        self.key = keras.layers.Dense(width, name="key", **settings)
        self.value = keras.layers.Dense(width, name="value", **settings)
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        for layer in (self.query, self.key, self.value):
            layer.build(input_shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Keeps the shape."""
        return input_shape

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B·P, N, width)` to the same shape, before the output projection."""
        query, key, value = (self._split_heads(layer(tokens)) for layer in (self.query, self.key, self.value))
        query = query * (self.width // self.heads) ** -0.5
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        weights = self.dropout(softmax(scores, axis=-1), training=training)
        context = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return ops.reshape(context, (-1, ops.shape(tokens)[1], self.width))

    def _split_heads(self, tokens: Any) -> Any:
        """`(B·P, N, width)` to `(B·P, heads, N, width / heads)`."""
        tokens = ops.reshape(tokens, (-1, ops.shape(tokens)[1], self.heads, self.width // self.heads))
        return ops.transpose(tokens, (0, 2, 1, 3))


class _Linear(Block):
    """A linear layer with dropout, nested as the published checkpoints name it (`….dense`)."""

    def __init__(self, out_features: int, dropout: float, name: str | None = None) -> None:
        super().__init__(name=name)
        self.dense = keras.layers.Dense(out_features, name="dense")
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        return self.dropout(self.dense(tokens), training=training)


class Attention(Block):
    """Self-attention and its output projection."""

    def __init__(self, config: MobileViTConfig, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.attention = SelfAttention(config, width, name="attention")
        self.output_ = _Linear(width, config.hidden_dropout_prob, name="output")

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B·P, N, width)` to the same shape."""
        return self.output_(self.attention(tokens, training=training), training=training)


class TransformerLayer(Block):
    """Pre-norm transformer layer: attention, then feed-forward, each added to its input."""

    def __init__(self, config: MobileViTConfig, width: int, name: str | None = None) -> None:
        super().__init__(name=name)
        hidden = int(width * config.mlp_ratio)
        self.attention = Attention(config, width, name="attention")
        self.intermediate = _Linear(hidden, config.ffn_dropout, name="intermediate")
        self.activation = keras.layers.Activation(ACTIVATIONS[config.hidden_act])
        self.output_ = _Linear(width, config.hidden_dropout_prob, name="output")
        norm = {"epsilon": config.layer_norm_eps}
        self.layernorm_before = keras.layers.LayerNormalization(name="layernorm_before", **norm)
        self.layernorm_after = keras.layers.LayerNormalization(name="layernorm_after", **norm)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        for layer in (self.attention, self.intermediate, self.layernorm_before, self.layernorm_after):
            layer.build(input_shape)
        self.output_.build(self.intermediate.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Keeps the shape."""
        return input_shape

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B·P, N, width)` to the same shape."""
        tokens = tokens + self.attention(self.layernorm_before(tokens), training=training)
        hidden = self.intermediate.dense(self.layernorm_after(tokens))
        hidden = self.intermediate.dropout(self.activation(hidden), training=training)
        return tokens + self.output_(hidden, training=training)


class Transformer(Block):
    """A stack of transformer layers; their final LayerNorm belongs to the block."""

    def __init__(self, config: MobileViTConfig, width: int, num_layers: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.layer = [TransformerLayer(config, width, name=f"layer_{i}") for i in range(num_layers)]

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        """Maps `(B·P, N, width)` to the same shape."""
        for layer in self.layer:
            tokens = layer(tokens, training=training)
        return tokens


class MobileViTBlock(Block):
    """An inverted residual that downsamples, then the MobileViT block (paper, section 3.1).

    Local representation by convolutions, global representation by a transformer over patches,
    projection, and fusion with the block's input. The convolutions are never dilated.
    """

    def __init__(self, config: MobileViTConfig, stage: int, name: str | None = None) -> None:
        super().__init__(name=name)
        i = stage - 3
        in_channels, channels = config.stage_channels[stage - 1 : stage + 1]
        width, kernel, act = config.hidden_sizes[i], config.conv_kernel_size, config.hidden_act
        rule = downsampling_rules(config.output_stride)[i]
        self.patch_size, self.width = config.patch_sizes[i], width
        self.downsampling_layer = InvertedResidual(
            config, in_channels, channels, stride=rule.stride, dilation=rule.dilation,
            name="downsampling_layer",
        )  # fmt: skip
        self.conv_kxk = ConvNormAct(channels, kernel, activation=act, name="conv_kxk")
        self.conv_1x1 = ConvNormAct(width, norm=False, name="conv_1x1")
        self.transformer = Transformer(config, width, config.n_attn_blocks[i], name="transformer")
        self.layernorm = keras.layers.LayerNormalization(epsilon=config.layer_norm_eps, name="layernorm")
        self.conv_projection = ConvNormAct(channels, activation=act, name="conv_projection")
        self.fusion = None
        if config.use_fusion:
            self.fusion = ConvNormAct(channels, kernel, activation=act, name="fusion")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.downsampling_layer.build(input_shape)
        channels, width = self.downsampling_layer.reduce_1x1.out_channels, self.width
        for layer in (self.conv_kxk, self.conv_1x1):
            layer.build((None, None, None, channels))
        for layer in (self.transformer, self.layernorm):
            layer.build((None, None, width))
        self.conv_projection.build((None, None, None, width))
        if self.fusion is not None:
            self.fusion.build((None, None, None, 2 * channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(B, H / stride, W / stride, channels)`."""
        return self.downsampling_layer.compute_output_shape(input_shape)

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, channels)`."""
        features = self.downsampling_layer(features, training=training)
        local = self.conv_1x1(self.conv_kxk(features, training=training))
        projected = self.conv_projection(self.global_representation(local, training), training=training)
        if self.fusion is None:
            return projected
        return self.fusion(ops.concatenate([features, projected], axis=-1), training=training)

    def global_representation(self, features: Any, training: bool | None) -> Any:
        """Attention between the patches of a `(B, H, W, width)` map.

        A map that is not a multiple of the patch is enlarged here and brought back at the end.
        """
        _, old_height, old_width, _ = ops.shape(features)
        height, width = patch_multiple(old_height, self.patch_size), patch_multiple(old_width, self.patch_size)
        tokens = unfold_patches(resize(features, height, width, align_corners=False), self.patch_size)
        count = ops.shape(tokens)[2]
        tokens = ops.reshape(tokens, (-1, count, self.width))
        tokens = self.layernorm(self.transformer(tokens, training=training))
        tokens = ops.reshape(tokens, (-1, self.patch_size**2, count, self.width))
        features = fold_patches(tokens, self.patch_size, height, width)
        return resize(features, old_height, old_width, align_corners=False)


def encoder_stages(config: MobileViTConfig) -> list[Any]:
    """Stages 1 to 5."""
    channels = config.stage_channels
    return [
        InvertedResidualStage(config, channels[0], channels[1], stride=1, num_blocks=1, name="stage1"),
        InvertedResidualStage(config, channels[1], channels[2], stride=2, num_blocks=3, name="stage2"),
        *(MobileViTBlock(config, stage, name=f"stage{stage}") for stage in (3, 4, 5)),
    ]


class TFMobileViTPreTrainedModel(HubModel):
    """What the MobileViT models share: config class, loading, saving and initialisation."""

    config_class = MobileViTConfig
    base_model_prefix = "mobilevit"

    @staticmethod
    def initializers(config: MobileViTConfig) -> Initializers:
        """Apple's first release, the code that made the version 1 weights."""
        return version_1_initializers(config.initializer_range)


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTModel(FeaturesMixin, TFMobileViTPreTrainedModel):
    """The network without a classifier: a functional Keras model.

    Maps `pixel_values` `(B, H, W, 3)`, floats in [0, 1] in the channel order of the checkpoint, to a
    dictionary: `last_hidden_state` `(B, h, w, C)` and `pooler_output` `(B, C)`.

    Args:
        config: What to build.
        expand_output: Whether the last 1×1 convolution and the pooling belong to it.
        image_size: Side, or height and width, of the only size it takes; None: any size from 32 pixels.
        options: `name` and other arguments of `keras.Model`.
    """

    def __init__(
        self, config: MobileViTConfig, expand_output: bool = True, image_size: Any = None, **options: Any
    ) -> None:
        super().__init__(
            config,
            encoder_stages(config),
            config.neck_hidden_sizes[6],
            expand_output=expand_output,
            image_size=image_size,
            **options,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTForImageClassification(ClassifierMixin, TFMobileViTPreTrainedModel):
    """MobileViT with a linear classifier on the pooled features."""

    base_class = TFMobileViTModel
    dropout_field = "classifier_dropout_prob"


@keras.saving.register_keras_serializable(PACKAGE)
class TFMobileViTBackbone(BackboneMixin, TFMobileViTPreTrainedModel):
    """MobileViT as a feature extractor: a dictionary of the maps named by `out_features`."""

    base_class = TFMobileViTModel
