"""The inference form of a Keras classifier: the folded network of `inference.folding` as TensorFlow graphs.

One rewrite more, in version 1: all that is added to the tokens has its channel mean taken out beforehand, so that
LayerNorm needs none. The weights are constants of one graph per image size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from mobilevit_hub.errors import InputError, require
from mobilevit_hub.inference.folding import (
    Convolution,
    FoldedNetwork,
    InvertedResidual,
    Linear,
    Norm,
    Version1Block,
    Version1Layer,
    Version2Block,
    Version2Layer,
)

from ..layers import check_pixel_values, image_input, patch_multiple, require_tensorflow, resize

require("tensorflow", "tf", "fuse()")
import tensorflow as tf  # noqa: E402

Function = Callable[[Any], Any]
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


ACTIVATIONS: dict[str | None, Function] = {
    None: lambda features: features,
    "silu": swish,
    "relu": tf.nn.relu,
    "gelu": keras.activations.get("gelu"),
}


def standardisation(norm: Norm, *, centred: bool = False) -> Function:
    """A norm without its scale and shift, on `(B, P, N, width)`; `centred` says that the mean is zero already."""
    axes = (1, 2, 3) if norm.jointly else (-1,)

    def run(tokens: tf.Tensor) -> tf.Tensor:
        if not centred:
            tokens = tokens - tf.reduce_mean(tokens, axes, keepdims=True)
        return tokens * tf.math.rsqrt(tf.reduce_mean(tf.square(tokens), axes, keepdims=True) + norm.epsilon)

    return run


# --------------------------------------------------------------------------------------------------
# Operations that a runtime wants in its own way
# --------------------------------------------------------------------------------------------------


def kernel_of(layer: Convolution) -> tuple[np.ndarray, Any]:
    """The kernel in TensorFlow's layout, and the operation that takes it."""
    if layer.depthwise:
        return layer.weight.transpose(2, 3, 0, 1), tf.nn.depthwise_conv2d
    return layer.weight.transpose(2, 3, 1, 0), tf.nn.conv2d


class Operations:
    """How TensorFlow on a CPU computes them fastest; a subclass does the same for another runtime."""

    def convolution(self, layer: Convolution) -> Function:
        """Convolution, bias and activation.

        At stride 2 the kernel gets a row and a column of zeros at its far sides: of an even kernel "SAME" pads the
        near sides as the layer does, whatever the size of the map, and only zeros meet what it pads beyond.
        """
        kernel, run_convolution = kernel_of(layer)
        steps, dilation = (1, layer.stride, layer.stride, 1), (layer.dilation, layer.dilation)
        if layer.stride == 2:
            kernel = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))

        def run(features: tf.Tensor) -> tf.Tensor:
            features = run_convolution(features, constant(kernel), steps, "SAME", dilations=dilation)
            return ACTIVATIONS[layer.activation](tf.nn.bias_add(features, constant(layer.bias)))

        return run

    def linear(self, layer: Linear) -> Function:
        """Applies it, and its activation, to the last axis of `(…, in)`."""
        kernel = layer.weight.T

        def run(features: tf.Tensor) -> tf.Tensor:
            if len(features.shape) > 2 and min(kernel.shape) >= WIDE:
                maps = tf.nn.conv2d(features, constant(kernel[None, None]), 1, "SAME")
                return ACTIVATIONS[layer.activation](tf.nn.bias_add(maps, constant(layer.bias)))
            rows = tf.reshape(features, (-1, kernel.shape[0]))
            rows = tf.nn.bias_add(tf.matmul(rows, constant(kernel)), constant(layer.bias))
            return ACTIVATIONS[layer.activation](tf.reshape(rows, [-1, *features.shape[1:-1], kernel.shape[1]]))

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
# The network: each function takes a record and returns a function without variables
# --------------------------------------------------------------------------------------------------


def inverted_residual(block: InvertedResidual, operations: Operations) -> Function:
    """Expansion, depthwise convolution, reduction."""
    layers = (block.expand, block.depthwise, block.reduce)
    body = chain([operations.convolution(layer) for layer in layers if layer is not None])
    return residual(body) if block.use_residual else body


def attention(layer: Version1Layer, operations: Operations) -> Function:
    """Norm, self-attention and output projection of a version 1 transformer layer."""
    return chain(
        [
            standardisation(layer.norm, centred=True),
            operations.linear(layer.qkv),
            lambda projected: operations.attend(projected, layer.heads),
            operations.linear(layer.out.without_mean()),
        ]
    )


def feed_forward(layer: Version1Layer, operations: Operations) -> Function:
    """Norm and the two linear layers of a version 1 transformer layer."""
    linear = [operations.linear(layer.first), operations.linear(layer.second.without_mean())]
    return chain([standardisation(layer.norm, centred=True), *linear])


def version_1_block(block: Version1Block, operations: Operations) -> Function:
    """A MobileViT block and the inverted residual before it."""
    downsampling = inverted_residual(block.downsampling, operations)
    conv_kxk = operations.convolution(block.conv_kxk)
    conv_1x1 = operations.linear(block.conv_1x1.linear.without_mean())
    parts = (attention, feed_forward)
    layers = [residual(part(layer, operations)) for layer in block.layers for part in parts]
    transformer = chain([*layers, standardisation(block.norm, centred=True)])
    projection, activation = operations.linear(block.projection), ACTIVATIONS[block.activation]
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


def separable_attention(layer: Version2Layer, operations: Operations) -> Function:
    """Norm, separable self-attention and output projection of a version 2 transformer layer."""
    norm = standardisation(layer.norm)
    query, key, value, out = map(operations.linear, (layer.query, layer.key, layer.value, layer.out))

    def run(tokens: tf.Tensor) -> tf.Tensor:
        tokens = norm(tokens)
        context = key(operations.pool(query(tokens), tokens))
        return out(value(tokens) * context)

    return run


def version_2_feed_forward(layer: Version2Layer, operations: Operations) -> Function:
    """Norm and the two pointwise convolutions of a version 2 transformer layer."""
    return chain([standardisation(layer.norm), operations.linear(layer.first), operations.linear(layer.second)])


def version_2_block(block: Version2Block, operations: Operations) -> Function:
    """A MobileViTv2 block and the inverted residual before it."""
    downsampling = inverted_residual(block.downsampling, operations)
    local = chain([operations.convolution(block.conv_kxk), operations.linear(block.conv_1x1.linear)])
    parts = (separable_attention, version_2_feed_forward)
    layers = [residual(part(layer, operations)) for layer in block.layers for part in parts]
    transformer = chain([*layers, standardisation(block.norm)])
    projection, patch, stock = operations.linear(block.projection), block.patch_size, block.odd_map == "stock"

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
        rest = constant(block.rest)
        return tf.pad(features - rest, ((0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0))) + rest

    return run


STAGES: dict[type, Callable[[Any, Operations], Function]] = {
    Convolution: lambda layer, operations: operations.convolution(layer),
    InvertedResidual: inverted_residual,
    Version1Block: version_1_block,
    Version2Block: version_2_block,
}


def folded_network(network: FoldedNetwork, operations: Operations) -> Function:
    """A classifier as a function from `pixel_values` `(B, H, W, C)` to logits `(B, num_labels)`."""
    features = [STAGES[type(layer)](layer, operations) for layer in network.features]
    head = [] if network.classifier is None else [operations.linear(network.classifier)]
    return chain([*features, lambda maps: tf.reduce_mean(maps, (1, 2)), *head])


class FusedModel:
    """A classifier for inference. Its weights are constants; safe to call from several threads.

    Call it with `pixel_values` `(B, H, W, C)`, floats in [0, 1] in the channel order of the checkpoint,
    and get logits `(B, num_labels)` as a tensor. It takes the image sizes that its model takes; the first
    image of a size waits for its graph (seconds), and the graphs of the last 16 sizes are kept.

    Args:
        network: The folded network: `folded()` of a classifier, or what `inference.folding.fold` makes of a checkpoint.
        input_shape: `(None, H, W, C)` of a model that takes one size only.

    Attributes:
        labels: Names of the labels by index.
    """

    def __init__(self, network: FoldedNetwork, input_shape: tuple[int | None, ...] | None = None) -> None:
        require_tensorflow("fuse()")
        self._config = network.config
        self.labels: dict[int, str] = network.config.id2label
        self._input_shape = input_shape or (None, None, None, network.config.num_channels)
        self._network = folded_network(network, Operations())
        self._graph = functools.lru_cache(MAX_GRAPHS)(self._trace)

    @property
    def config(self) -> Any:
        """The config of the network."""
        from mobilevit_hub.network.configuration import full_config  # which imports transformers

        return full_config(self._config)

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
        signature = [tf.TensorSpec((None, height, width, self._config.num_channels), tf.float32)]
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
    if not hasattr(model, "folded"):
        raise InputError(
            f"fuse() got {type(model).__name__}; it takes a TFMobileViTForImageClassification or "
            "TFMobileViTV2ForImageClassification.",
            field="model",
        )
    fused = FusedModel(model.folded(), model.input_shape)
    if image_size is not None:
        fused(np.zeros((1, *image_input(model.config, image_size).shape[1:]), np.float32))
    return fused
