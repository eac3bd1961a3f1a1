"""The inference form of a Keras classifier: `fuse` folds and reorders what only training needs as it is.

Exact rewrites, on a copy of the weights:

- BatchNorm goes into the kernel and bias of its convolution;
- scale and shift of a norm go into the linear layer that reads it;
- version 1: one matrix product for query, key and value, with the scale of the attention in the query;
  all that is added to the tokens has its channel mean taken out beforehand, so LayerNorm needs none;
- version 2: the key is projected after the pooling, where one vector per place is left of N.

The folded weights are constants of one graph per image size. This form is not trained and not saved.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np

from mobilevit_hub.errors import InputError, require

from ..layers import ConvNormAct, check_pixel_values, image_input, patch_multiple, require_tensorflow, resize
from ..mobilevit import MobileViTBlock, TFMobileViTForImageClassification
from ..mobilevitv2 import MobileViTV2Block, TFMobileViTV2ForImageClassification
from .folding import Function, Linear, as_linear, folded_convolution, is_depthwise

require("tensorflow", "tf", "fuse()")
import tensorflow as tf  # noqa: E402

MAX_GRAPHS = 16
TRANSFORMER = "transformer"
"""Scope of the names of all that a transformer computes, so that an exporter can tell it from the convolutions."""
WIDE = 144
"""From so many channels on TensorFlow's pointwise convolution is faster than its matrix product (one image: 10 %)."""


def constant(array: np.ndarray) -> tf.Tensor:
    """A float32 constant."""
    return tf.constant(array, tf.float32)


def chain(functions: list[Function]) -> Function:
    """One function after the other."""
    return lambda features: functools.reduce(lambda value, function: function(value), functions, features)


def residual(function: Function) -> Function:
    """Adds the input to the output."""
    return lambda tokens: tokens + function(tokens)


def swish(features: tf.Tensor) -> tf.Tensor:
    """`x · sigmoid(x)` in the only form that TensorFlow merges into the convolution before it."""
    return features * tf.sigmoid(features)


def activation_of(layer: keras.layers.Activation | None) -> Function:
    """The activation of a layer; the identity where it has none."""
    if layer is None:
        return lambda features: features
    return swish if layer.activation is keras.activations.silu else layer.activation


def standardisation(norm: Any, *, axes: tuple[int, ...] = (-1,), centred: bool = False) -> Function:
    """A norm without its scale and shift; `centred` says that the mean is zero already."""

    def run(tokens: tf.Tensor) -> tf.Tensor:
        if not centred:
            tokens = tokens - tf.reduce_mean(tokens, axes, keepdims=True)
        return tokens * tf.math.rsqrt(tf.reduce_mean(tf.square(tokens), axes, keepdims=True) + norm.epsilon)

    return run


def version_2_norm(norm: Any) -> Function:
    """GroupNorm with one group, or LayerNorm, on `(B, P, N, width)`, without scale and shift."""
    return standardisation(norm, axes=(-1,) if isinstance(norm, keras.layers.LayerNormalization) else (1, 2, 3))


# --------------------------------------------------------------------------------------------------
# Operations that a runtime wants in its own way
# --------------------------------------------------------------------------------------------------


class Operations:
    """How TensorFlow on a CPU computes them fastest; a subclass does the same for another runtime."""

    def convolution(self, layer: ConvNormAct) -> Function:
        """Convolution, BatchNorm and activation as one biased convolution and the activation.

        At stride 2 the kernel gets a row and a column of zeros at its far sides: of an even kernel "SAME" pads the
        near sides as the layer does, whatever the size of the map, and only zeros meet what it pads beyond.
        """
        kernel, bias = folded_convolution(layer)
        activation = activation_of(layer.activation)
        run_convolution = tf.nn.depthwise_conv2d if is_depthwise(layer) else tf.nn.conv2d
        steps, dilation = (1, layer.stride, layer.stride, 1), layer.convolution.dilation_rate
        if layer.stride == 2:
            kernel = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))

        def run(features: tf.Tensor) -> tf.Tensor:
            features = run_convolution(features, constant(kernel), steps, "SAME", dilations=dilation)
            return activation(tf.nn.bias_add(features, constant(bias)))

        return run

    def linear(self, layer: Linear) -> Function:
        """Applies it to the last axis of `(…, in)`."""

        def run(features: tf.Tensor) -> tf.Tensor:
            if len(features.shape) > 2 and min(layer.kernel.shape) >= WIDE:
                maps = tf.nn.conv2d(features, constant(layer.kernel[None, None]), 1, "SAME")
                return tf.nn.bias_add(maps, constant(layer.bias))
            rows = tf.reshape(features, (-1, layer.kernel.shape[0]))
            rows = tf.nn.bias_add(tf.matmul(rows, constant(layer.kernel)), constant(layer.bias))
            return tf.reshape(rows, [-1, *features.shape[1:-1], layer.kernel.shape[1]])

        return run

    def unfold_patches(self, features: tf.Tensor, patch: int) -> tf.Tensor:
        """`(B, H, W, C)` to `(B, P, N, C)`: `layers.unfold_patches` in one transposition."""
        _, height, width, channels = features.shape
        grid = tf.reshape(features, (-1, height // patch, patch, width // patch, patch, channels))
        return tf.reshape(_transpose(grid, (0, 2, 4, 1, 3, 5)), (-1, patch**2, height * width // patch**2, channels))

    def fold_patches(self, tokens: tf.Tensor, patch: int, height: int, width: int) -> tf.Tensor:
        """`(B, P, N, C)` to `(B, height, width, C)`: the inverse of `unfold_patches`."""
        channels = tokens.shape[-1]
        grid = tf.reshape(tokens, (-1, patch, patch, height // patch, width // patch, channels))
        return tf.reshape(_transpose(grid, (0, 3, 1, 4, 2, 5)), (-1, height, width, channels))

    def attend(self, projected: tf.Tensor, heads: int) -> tf.Tensor:
        """Self-attention of scaled queries, keys and values `(B, P, N, 3 · width)`: contexts `(B, P, N, width)`."""
        _, places, count, channels = projected.shape
        size = channels // heads // 3
        projected = tf.reshape(projected, (-1, count, 3, heads, size))
        query, key, value = tf.unstack(_transpose(projected, (2, 0, 3, 1, 4)))
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        context = _transpose(tf.matmul(weights, value), (0, 2, 1, 3))
        return tf.reshape(context, (-1, places, count, heads * size))

    def pool(self, scores: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Mean of tokens `(B, P, N, width)` by the softmax of scores `(B, P, N, 1)`: `(B, P, 1, width)`."""
        return tf.matmul(tf.nn.softmax(scores, axis=2), tokens, transpose_a=True)

    def resize(self, features: tf.Tensor, height: int, width: int, *, align_corners: bool) -> tf.Tensor:
        """Bilinear resize, by either of PyTorch's conventions; see `layers.resize`."""
        return resize(features, height, width, align_corners=align_corners)


def _transpose(features: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Reorders axes. As integers: for floats TensorFlow calls oneDNN, whose threads cost more than small maps do."""
    return tf.bitcast(tf.transpose(tf.bitcast(features, tf.uint32), axes), tf.float32)


# --------------------------------------------------------------------------------------------------
# The network: each function takes layers of the trainable model and returns a function without variables
# --------------------------------------------------------------------------------------------------


def inverted_residual(block: Any, operations: Operations) -> Function:
    """Expansion, depthwise convolution, reduction."""
    layers = (block.expand_1x1, block.conv_3x3, block.reduce_1x1)
    body = chain([operations.convolution(layer) for layer in layers if layer is not None])
    return residual(body) if block.use_residual else body


def attention(layer: Any, operations: Operations) -> Function:
    """LayerNorm, self-attention and output projection of a version 1 transformer layer."""
    inner = layer.attention.attention
    scale = (inner.width // inner.heads) ** -0.5
    parts = [as_linear(part).after(layer.layernorm_before) for part in (inner.query, inner.key, inner.value)]
    parts[0] = Linear(parts[0].kernel * scale, parts[0].bias * scale)
    qkv = Linear(np.concatenate([p.kernel for p in parts], 1), np.concatenate([p.bias for p in parts]))
    return chain(
        [
            standardisation(layer.layernorm_before, centred=True),
            operations.linear(qkv),
            lambda projected: operations.attend(projected, inner.heads),
            operations.linear(as_linear(layer.attention.output_.dense).without_mean()),
        ]
    )


def feed_forward(layer: Any, operations: Operations) -> Function:
    """LayerNorm and the two linear layers of a version 1 transformer layer."""
    return chain(
        [
            standardisation(layer.layernorm_after, centred=True),
            operations.linear(as_linear(layer.intermediate.dense).after(layer.layernorm_after)),
            activation_of(layer.activation),
            operations.linear(as_linear(layer.output_.dense).without_mean()),
        ]
    )


def version_1_block(block: MobileViTBlock, operations: Operations) -> Function:
    """A MobileViT block and the inverted residual before it."""
    downsampling = inverted_residual(block.downsampling_layer, operations)
    conv_kxk = operations.convolution(block.conv_kxk)
    conv_1x1 = operations.linear(as_linear(block.conv_1x1).without_mean())
    parts = (attention, feed_forward)
    layers = [residual(part(layer, operations)) for layer in block.transformer.layer for part in parts]
    transformer = chain([*layers, standardisation(block.layernorm, centred=True)])
    projection = operations.linear(as_linear(block.conv_projection).after(block.layernorm))
    activation = activation_of(block.conv_projection.activation)
    fusion = operations.convolution(block.fusion) if block.fusion is not None else None
    patch = block.patch_size

    def run(features: tf.Tensor) -> tf.Tensor:
        features = downsampling(features)
        sides = features.shape[1:3]
        height, width = (patch_multiple(side, patch) for side in sides)
        local = operations.resize(conv_1x1(conv_kxk(features)), height, width, align_corners=False)
        with tf.name_scope(TRANSFORMER):
            tokens = transformer(operations.unfold_patches(local, patch))
            tokens = operations.fold_patches(tokens, patch, height, width)
        projected = activation(projection(operations.resize(tokens, *sides, align_corners=False)))
        return projected if fusion is None else fusion(tf.concat([features, projected], -1))

    return run


def separable_attention(layer: Any, operations: Operations) -> Function:
    """Norm, separable self-attention and output projection of a version 2 transformer layer.

    The weights of the pooling sum to 1, so the key of the pooled token is the pooled key; for the same
    reason the query's bias has no effect.
    """
    inner, width = layer.attention, layer.attention.width
    norm = version_2_norm(layer.layernorm_before)
    qkv = as_linear(inner.qkv_proj).after(layer.layernorm_before)
    columns = (qkv.columns(0, 1), qkv.columns(1, 1 + width), qkv.columns(1 + width, None))
    query, key, value = map(operations.linear, columns)
    out = operations.linear(as_linear(inner.out_proj))

    def run(tokens: tf.Tensor) -> tf.Tensor:
        tokens = norm(tokens)
        context = key(operations.pool(query(tokens), tokens))
        return out(tf.nn.relu(value(tokens)) * context)

    return run


def version_2_feed_forward(layer: Any, operations: Operations) -> Function:
    """Norm and the two pointwise convolutions of a version 2 transformer layer."""
    return chain(
        [
            version_2_norm(layer.layernorm_after),
            operations.linear(as_linear(layer.ffn.conv1).after(layer.layernorm_after)),
            activation_of(layer.ffn.conv1.activation),
            operations.linear(as_linear(layer.ffn.conv2)),
        ]
    )


def version_2_block(block: MobileViTV2Block, operations: Operations) -> Function:
    """A MobileViTv2 block and the inverted residual before it."""
    downsampling = inverted_residual(block.downsampling_layer, operations)
    local = chain([operations.convolution(block.conv_kxk), operations.linear(as_linear(block.conv_1x1))])
    parts = (separable_attention, version_2_feed_forward)
    layers = [residual(part(layer, operations)) for layer in block.transformer.layer for part in parts]
    transformer = chain([*layers, version_2_norm(block.layernorm)])
    plain, patch = as_linear(block.conv_projection), block.patch_size
    projection, stock = operations.linear(plain.after(block.layernorm)), block.odd_map == "stock"

    def run(features: tf.Tensor) -> tf.Tensor:
        features = downsampling(features)
        sides = features.shape[1:3]
        if stock:
            height, width = (side // patch * patch for side in sides)
        else:
            height, width = (patch_multiple(side, patch) for side in sides)
            features = operations.resize(features, height, width, align_corners=True)
        features = local(features)
        if stock:
            features = features[:, :height, :width]
        with tf.name_scope(TRANSFORMER):
            tokens = transformer(operations.unfold_patches(features, patch))
            features = operations.fold_patches(tokens, patch, height, width)
        features = projection(features)
        if not stock:
            return features
        # transformers projects zeros where no patch fits: what comes out is the bias
        bias = constant(plain.bias)
        return tf.pad(features - bias, ((0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0))) + bias

    return run


def stage(layer: Any, operations: Operations) -> Function:
    """One of the five stages."""
    if isinstance(layer, MobileViTBlock):
        return version_1_block(layer, operations)
    if isinstance(layer, MobileViTV2Block):
        return version_2_block(layer, operations)
    return chain([inverted_residual(block, operations) for block in layer.layer])


def folded_network(model: Any, operations: Operations) -> Function:
    """A classifier as a function from `pixel_values` `(B, H, W, C)` to logits `(B, num_labels)`."""
    backbone, *classifier = model.parts.values()
    features = [
        stage(layer, operations) if name.startswith("encoder") else operations.convolution(layer)
        for name, layer in backbone.parts.items()
    ]
    head = [operations.linear(as_linear(layer)) for layer in classifier]
    return chain([*features, lambda maps: tf.reduce_mean(maps, (1, 2)), *head])


class FusedModel:
    """A classifier for inference, made by `fuse`. Its weights are constants; safe to call from several threads.

    Call it with `pixel_values` `(B, H, W, C)`, floats in [0, 1] in the channel order of the checkpoint,
    and get logits `(B, num_labels)` as a tensor. It takes the image sizes that its model takes; the first
    image of a size waits for its graph (seconds), and the graphs of the last 16 sizes are kept.

    Attributes:
        config: The config of the model that it was made from.
    """

    def __init__(self, model: Any) -> None:
        self.config, self._input_shape = model.config, model.input_shape
        self._network = folded_network(model, Operations())
        self._graph = functools.lru_cache(MAX_GRAPHS)(self._trace)

    def __call__(self, pixel_values: Any) -> tf.Tensor:
        """Logits of a batch, computed at once.

        Raises:
            InputError: `pixel_values` is not a batch of floating point images that the model takes.
        """
        check_pixel_values(pixel_values, self._input_shape)
        height, width = pixel_values.shape[1:3]
        return self._graph(height, width)(tf.cast(pixel_values, tf.float32))

    def predict(self, pixel_values: Any, batch_size: int = 32) -> np.ndarray:
        """Logits `(B, num_labels)` as an array; more images than `batch_size` are computed in turns."""
        check_pixel_values(pixel_values, self._input_shape)
        starts = range(0, len(pixel_values), batch_size)
        return np.concatenate([self(pixel_values[start : start + batch_size]).numpy() for start in starts])

    def _trace(self, height: int, width: int) -> Any:
        """The graph of one image size, for any number of images."""
        signature = [tf.TensorSpec((None, height, width, self.config.num_channels), tf.float32)]
        return tf.function(self._network, signature, autograph=False, jit_compile=False).get_concrete_function()


def fuse(model: Any, image_size: int | tuple[int, int] | None = None) -> FusedModel:
    """Makes the inference form of a classifier; the model itself is not changed and stays trainable.

    Its logits differ from the model's by rounding only. It computes in float32, also where the model
    trains in mixed precision.

    Args:
        model: A `TFMobileViTForImageClassification` or `TFMobileViTV2ForImageClassification`.
        image_size: Side, or height and width, whose graph to make now. Default: each at its first image.

    Raises:
        InputError: It is another model, or one that does not take `image_size`.
        MissingDependencyError: Keras runs on another backend than TensorFlow.
    """
    require_tensorflow("fuse()")
    if not isinstance(model, TFMobileViTForImageClassification | TFMobileViTV2ForImageClassification):
        raise InputError(
            f"fuse() got {type(model).__name__}; it takes a TFMobileViTForImageClassification or "
            "TFMobileViTV2ForImageClassification.",
            field="model",
        )
    fused = FusedModel(model)
    if image_size is not None:
        fused(np.zeros((1, *image_input(model.config, image_size).shape[1:]), np.float32))
    return fused
