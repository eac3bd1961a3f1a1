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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mobilevit_hub.errors import InputError, require

from .layers import ConvNormAct, check_pixel_values, patch_multiple, require_tensorflow, resize
from .mobilevit import MobileViTBlock, TFMobileViTForImageClassification
from .mobilevitv2 import MobileViTV2Block, TFMobileViTV2ForImageClassification
from .pretrained import image_input

require("tensorflow", "tf", "fuse()")
import tensorflow as tf  # noqa: E402

Function = Callable[[tf.Tensor], tf.Tensor]
MAX_GRAPHS = 16
WIDE = 144
"""From so many channels on TensorFlow's pointwise convolution is faster than its matrix product (one image: 10 %)."""


@dataclass(frozen=True)
class Linear:
    """`x @ kernel + bias` in float64, `(in, out)` and `(out,)`: what the rewrites work on."""

    kernel: np.ndarray
    bias: np.ndarray

    def after(self, norm: Any) -> Linear:
        """Takes in the scale and shift of the norm that is applied just before."""
        scale, shift = _array(norm.gamma), _array(norm.beta)
        return Linear(scale[:, None] * self.kernel, self.bias + shift @ self.kernel)

    def without_mean(self) -> Linear:
        """Subtracts the mean over the output channels."""
        return Linear(self.kernel - self.kernel.mean(1, keepdims=True), self.bias - self.bias.mean())

    def columns(self, start: int, stop: int | None) -> Linear:
        """Only some outputs."""
        return Linear(self.kernel[:, start:stop], self.bias[start:stop])

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Applies it to the last axis of `(…, in)`."""
        if len(features.shape) > 2 and min(self.kernel.shape) >= WIDE:
            maps = features if len(features.shape) == 4 else features[:, None]
            maps = tf.nn.conv2d(maps, _constant(self.kernel[None, None]), 1, "SAME")
            maps = tf.nn.bias_add(maps, _constant(self.bias))
            return maps if len(features.shape) == 4 else maps[:, 0]
        rows = tf.reshape(features, (-1, self.kernel.shape[0]))
        rows = tf.nn.bias_add(tf.matmul(rows, _constant(self.kernel)), _constant(self.bias))
        return tf.reshape(rows, [-1, *features.shape[1:-1], self.kernel.shape[1]])


def _array(variable: Any) -> np.ndarray:
    return variable.numpy().astype(np.float64)


def _constant(array: np.ndarray) -> tf.Tensor:
    return tf.constant(array, tf.float32)


def _chain(functions: list[Function]) -> Function:
    return lambda features: functools.reduce(lambda value, function: function(value), functions, features)


# --------------------------------------------------------------------------------------------------
# Layers: each takes a layer of the trainable model and returns a function without variables
# --------------------------------------------------------------------------------------------------


def folded_convolution(layer: ConvNormAct) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, in float64 and Keras' layout, of a convolution and its BatchNorm together."""
    kernel = _array(layer.convolution.kernel)
    depthwise = isinstance(layer.convolution, keras.layers.DepthwiseConv2D)
    channels = kernel.shape[2 if depthwise else 3]
    bias = _array(layer.convolution.bias) if layer.convolution.use_bias else np.zeros(channels)
    if layer.normalization is not None:
        norm = layer.normalization
        scale = _array(norm.gamma) / np.sqrt(_array(norm.moving_variance) + norm.epsilon)
        kernel = kernel * (scale[:, None] if depthwise else scale)
        bias = _array(norm.beta) + (bias - _array(norm.moving_mean)) * scale
    return kernel, bias


def as_linear(layer: ConvNormAct | keras.layers.Dense) -> Linear:
    """A pointwise convolution, with its BatchNorm, or a dense layer."""
    if isinstance(layer, keras.layers.Dense):
        kernel = _array(layer.kernel)
        return Linear(kernel, _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[1]))
    kernel, bias = folded_convolution(layer)
    return Linear(kernel[0, 0], bias)


def swish(features: tf.Tensor) -> tf.Tensor:
    """`x · sigmoid(x)` in the only form that TensorFlow merges into the convolution before it."""
    return features * tf.sigmoid(features)


def activation_of(layer: keras.layers.Activation | None) -> Function:
    """The activation of a layer; the identity where it has none."""
    if layer is None:
        return lambda features: features
    return swish if layer.activation is keras.activations.silu else layer.activation


def convolution(layer: ConvNormAct) -> Function:
    """Convolution, BatchNorm and activation as one biased convolution and the activation.

    At stride 2 the kernel gets a row and a column of zeros at its far sides: of an even kernel "SAME" pads the
    near sides as the layer does, whatever the size of the map, and only zeros meet what it pads beyond.
    """
    kernel, bias = folded_convolution(layer)
    activation = activation_of(layer.activation)
    depthwise = isinstance(layer.convolution, keras.layers.DepthwiseConv2D)
    run_convolution = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
    steps, dilation = (1, layer.stride, layer.stride, 1), layer.convolution.dilation_rate
    if layer.stride == 2:
        kernel = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))

    def run(features: tf.Tensor) -> tf.Tensor:
        features = run_convolution(features, _constant(kernel), steps, "SAME", dilations=dilation)
        return activation(tf.nn.bias_add(features, _constant(bias)))

    return run


def inverted_residual(block: Any) -> Function:
    """Expansion, depthwise convolution, reduction."""
    layers = (block.expand_1x1, block.conv_3x3, block.reduce_1x1)
    body = _chain([convolution(layer) for layer in layers if layer is not None])
    return (lambda features: features + body(features)) if block.use_residual else body


def standardisation(norm: Any, *, axes: tuple[int, ...] = (-1,), centred: bool = False) -> Function:
    """A norm without its scale and shift; `centred` says that the mean is zero already."""

    def run(tokens: tf.Tensor) -> tf.Tensor:
        if not centred:
            tokens = tokens - tf.reduce_mean(tokens, axes, keepdims=True)
        return tokens * tf.math.rsqrt(tf.reduce_mean(tf.square(tokens), axes, keepdims=True) + norm.epsilon)

    return run


def transpose(features: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
    """Reorders axes. As integers: for floats TensorFlow calls oneDNN, whose threads cost more than small maps do."""
    return tf.bitcast(tf.transpose(tf.bitcast(features, tf.uint32), axes), tf.float32)


def unfold_patches(features: tf.Tensor, patch: int) -> tf.Tensor:
    """`(B, H, W, C)` to `(B, P, N, C)`: `layers.unfold_patches` in one transposition."""
    _, height, width, channels = features.shape
    grid = tf.reshape(features, (-1, height // patch, patch, width // patch, patch, channels))
    return tf.reshape(transpose(grid, (0, 2, 4, 1, 3, 5)), (-1, patch**2, height * width // patch**2, channels))


def fold_patches(tokens: tf.Tensor, patch: int, height: int, width: int) -> tf.Tensor:
    """`(B, P, N, C)` to `(B, height, width, C)`: the inverse of `unfold_patches`."""
    channels = tokens.shape[-1]
    grid = tf.reshape(tokens, (-1, patch, patch, height // patch, width // patch, channels))
    return tf.reshape(transpose(grid, (0, 3, 1, 4, 2, 5)), (-1, height, width, channels))


# --------------------------------------------------------------------------------------------------
# Version 1
# --------------------------------------------------------------------------------------------------


def attention(layer: Any) -> Function:
    """LayerNorm, self-attention and output projection of a transformer layer, `(B·P, N, width)`."""
    inner = layer.attention.attention
    heads, size = inner.heads, inner.width // inner.heads
    parts = [as_linear(part).after(layer.layernorm_before) for part in (inner.query, inner.key, inner.value)]
    parts[0] = Linear(parts[0].kernel * size**-0.5, parts[0].bias * size**-0.5)
    qkv = Linear(np.concatenate([p.kernel for p in parts], 1), np.concatenate([p.bias for p in parts]))
    out = as_linear(layer.attention.output_.dense).without_mean()
    norm = standardisation(layer.layernorm_before, centred=True)

    def run(tokens: tf.Tensor) -> tf.Tensor:
        count = tokens.shape[1]
        projected = tf.reshape(qkv(norm(tokens)), (-1, count, 3, heads, size))
        query, key, value = tf.unstack(transpose(projected, (2, 0, 3, 1, 4)))
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        context = transpose(tf.matmul(weights, value), (0, 2, 1, 3))
        return out(tf.reshape(context, (-1, count, heads * size)))

    return run


def feed_forward(layer: Any) -> Function:
    """LayerNorm and the two linear layers of a version 1 transformer layer."""
    norm = standardisation(layer.layernorm_after, centred=True)
    wide = as_linear(layer.intermediate.dense).after(layer.layernorm_after)
    narrow = as_linear(layer.output_.dense).without_mean()
    activation = activation_of(layer.activation)
    return lambda tokens: narrow(activation(wide(norm(tokens))))


def residual(function: Function) -> Function:
    """Adds the input to the output."""
    return lambda tokens: tokens + function(tokens)


def version_1_block(block: MobileViTBlock) -> Function:
    """A MobileViT block and the inverted residual before it."""
    downsampling, conv_kxk = inverted_residual(block.downsampling_layer), convolution(block.conv_kxk)
    conv_1x1 = as_linear(block.conv_1x1).without_mean()
    layers = [residual(part(layer)) for layer in block.transformer.layer for part in (attention, feed_forward)]
    transformer = _chain([*layers, standardisation(block.layernorm, centred=True)])
    projection = as_linear(block.conv_projection).after(block.layernorm)
    activation = activation_of(block.conv_projection.activation)
    fusion = convolution(block.fusion) if block.fusion is not None else None
    patch, width = block.patch_size, block.width

    def run(features: tf.Tensor) -> tf.Tensor:
        features = downsampling(features)
        old_height, old_width = features.shape[1:3]
        height, length = patch_multiple(old_height, patch), patch_multiple(old_width, patch)
        local = resize(conv_1x1(conv_kxk(features)), height, length, align_corners=False)
        tokens = unfold_patches(local, patch)
        count = tokens.shape[2]
        tokens = transformer(tf.reshape(tokens, (-1, count, width)))
        tokens = tf.reshape(tokens, (-1, patch**2, count, width))
        tokens = resize(fold_patches(tokens, patch, height, length), old_height, old_width, align_corners=False)
        projected = activation(projection(tokens))
        return projected if fusion is None else fusion(tf.concat([features, projected], -1))

    return run


# --------------------------------------------------------------------------------------------------
# Version 2
# --------------------------------------------------------------------------------------------------


def version_2_norm(norm: Any) -> Function:
    """GroupNorm with one group, or LayerNorm, on `(B, P, N, width)`, without scale and shift."""
    return standardisation(norm, axes=(-1,) if isinstance(norm, keras.layers.LayerNormalization) else (1, 2, 3))


def separable_attention(layer: Any) -> Function:
    """Norm, separable self-attention and output projection, `(B, P, N, width)`.

    The weights of the pooling sum to 1, so the key of the pooled token is the pooled key; for the same
    reason the query's bias has no effect.
    """
    inner, width = layer.attention, layer.attention.width
    norm = version_2_norm(layer.layernorm_before)
    qkv = as_linear(inner.qkv_proj).after(layer.layernorm_before)
    query, key, value = qkv.columns(0, 1), qkv.columns(1, 1 + width), qkv.columns(1 + width, None)
    out = as_linear(inner.out_proj)

    def run(tokens: tf.Tensor) -> tf.Tensor:
        tokens = norm(tokens)
        scores = tf.nn.softmax(query(tokens), axis=2)
        context = key(tf.matmul(scores, tokens, transpose_a=True))
        return out(tf.nn.relu(value(tokens)) * context)

    return run


def version_2_feed_forward(layer: Any) -> Function:
    """Norm and the two pointwise convolutions of a version 2 transformer layer."""
    norm = version_2_norm(layer.layernorm_after)
    wide, narrow = as_linear(layer.ffn.conv1).after(layer.layernorm_after), as_linear(layer.ffn.conv2)
    activation = activation_of(layer.ffn.conv1.activation)
    return lambda tokens: narrow(activation(wide(norm(tokens))))


def version_2_block(block: MobileViTV2Block) -> Function:
    """A MobileViTv2 block and the inverted residual before it."""
    downsampling = inverted_residual(block.downsampling_layer)
    local = _chain([convolution(block.conv_kxk), as_linear(block.conv_1x1)])
    parts = (separable_attention, version_2_feed_forward)
    layers = [residual(part(layer)) for layer in block.transformer.layer for part in parts]
    transformer = _chain([*layers, version_2_norm(block.layernorm)])
    plain, patch = as_linear(block.conv_projection), block.patch_size
    projection, stock = plain.after(block.layernorm), block.odd_map == "stock"

    def run(features: tf.Tensor) -> tf.Tensor:
        features = downsampling(features)
        sides = features.shape[1:3]
        if stock:
            height, width = (side // patch * patch for side in sides)
        else:
            height, width = (patch_multiple(side, patch) for side in sides)
            features = resize(features, height, width, align_corners=True)
        tokens = transformer(unfold_patches(local(features)[:, :height, :width], patch))
        features = fold_patches(projection(tokens), patch, height, width)
        if not stock:
            return features
        # transformers projects zeros where no patch fits: what comes out is the bias
        bias = _constant(plain.bias)
        return tf.pad(features - bias, ((0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0))) + bias

    return run


# --------------------------------------------------------------------------------------------------
# The network
# --------------------------------------------------------------------------------------------------


def stage(layer: Any) -> Function:
    """One of the five stages."""
    if isinstance(layer, MobileViTBlock):
        return version_1_block(layer)
    if isinstance(layer, MobileViTV2Block):
        return version_2_block(layer)
    return _chain([inverted_residual(block) for block in layer.layer])


class FusedModel:
    """A classifier for inference, made by `fuse`. Its weights are constants; safe to call from several threads.

    Call it with `pixel_values` `(B, H, W, C)`, floats in [0, 1] in the channel order of the checkpoint,
    and get logits `(B, num_labels)` as a tensor. It takes the image sizes that its model takes; the first
    image of a size waits for its graph (seconds), and the graphs of the last 16 sizes are kept.

    Attributes:
        config: The config of the model that it was made from.
    """

    def __init__(self, model: Any) -> None:
        backbone, *classifier = model.parts.values()
        parts = backbone.parts.items()
        features = _chain([stage(layer) if name.startswith("encoder") else convolution(layer) for name, layer in parts])
        head = _chain([as_linear(layer) for layer in classifier])
        self.config, self._input_shape = model.config, model.input_shape
        self._network = lambda pixels: head(tf.reduce_mean(features(pixels), (1, 2)))
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
