"""Layers that both versions of the network share: the Keras twin of `mobilevit_hub.pt.layers`.

Shapes use the same letters everywhere: B images, C channels, H × W a feature map, P pixels per patch,
N patches per map; maps are channels-last. Attribute names that hold weights are those of the published
checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from mobilevit_hub.errors import InputError, MissingDependencyError
from mobilevit_hub.network.architecture import make_divisible

PACKAGE = "mobilevit_hub"
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}


def children_of(layer: Any) -> Iterator[tuple[str, Any]]:
    """The layers inside a layer in the order of its attributes, under their names in the checkpoints.

    An attribute whose name Keras keeps for itself (`output`) carries an underscore.
    """
    # On the torch backend a layer is a module, which keeps those inside apart.
    for attribute, value in (vars(layer) | vars(layer).get("_modules", {})).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, keras.layers.Layer):
            yield attribute.rstrip("_"), value
        elif isinstance(value, list):
            yield from ((f"{attribute}.{i}", v) for i, v in enumerate(value) if isinstance(v, keras.layers.Layer))


class Block(keras.layers.Layer):
    """A layer made of layers, which run one after the other unless a subclass says otherwise.

    Weights are made from known shapes; Keras' default would trace each level of the network anew.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights of every layer inside."""
        for _, layer in children_of(self):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the output."""
        for _, layer in children_of(self):
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape


def require_tensorflow(purpose: str) -> None:
    """Raises `MissingDependencyError` where Keras runs on another backend."""
    if keras.backend.backend() != "tensorflow":
        raise MissingDependencyError(
            f"{purpose} needs Keras on TensorFlow, but it runs on {keras.backend.backend()!r}. Set the environment "
            "variable KERAS_BACKEND=tensorflow before Keras is imported.",
            field="backend",
            found=keras.backend.backend(),
            expected="tensorflow",
        )


def replicas() -> Any:
    """The context of a `tf.distribute` strategy whose devices share each batch; None where there is one device."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def moments(features: Any) -> tuple[Any, Any, Any]:
    """Mean and biased variance `(C,)` of `(…, C)`, and how many values each is taken from.

    Under a `tf.distribute` strategy those of the whole batch, of which each device has a part.
    """
    axes, context = tuple(range(len(features.shape) - 1)), replicas()
    count = ops.cast(ops.size(features) // features.shape[-1], features.dtype)
    if context is None:
        return *ops.moments(features, axes=axes), count
    total, count = context.all_reduce("SUM", [ops.sum(features, axis=axes), count])
    mean = total / count
    # In two passes: mean(x²) − mean², which Keras takes here, loses the digits that the two have in common.
    variance = context.all_reduce("SUM", ops.sum(ops.square(features - mean), axis=axes)) / count
    return mean, variance, count


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose statistics follow PyTorch's.

    Epsilon 1e-5; momentum 0.9, which PyTorch calls 0.1. The running variance takes the unbiased batch
    variance, n / (n − 1) times the biased one that Keras would take. Counts batches, as checkpoints do.

    Training on several devices normalises with the moments of all of them together: what one device
    with the whole batch would do, also where the part of each is small or parts differ in size.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any) -> None:
        super().__init__(momentum=momentum, epsilon=epsilon, **options)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        super().build(input_shape)
        self.num_batches_tracked = self.add_weight(
            name="num_batches_tracked", shape=(), initializer="zeros", dtype="int64", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Normalises `(…, C)`; in training also moves the statistics."""
        exact = keras.backend.result_type(inputs.dtype, "float32")
        features = ops.cast(inputs, exact)
        mean, variance = ops.cast(self.moving_mean, exact), ops.cast(self.moving_variance, exact)
        if training and self.trainable:
            old_mean, old_variance = mean, variance
            mean, variance, count = moments(features)
            unbiased = variance * (count / ops.maximum(count - 1, 1))
            keep = self.momentum
            self.moving_mean.assign(old_mean * keep + mean * (1 - keep))
            self.moving_variance.assign(old_variance * keep + unbiased * (1 - keep))
            self.num_batches_tracked.assign(self.num_batches_tracked + 1)
        outputs = ops.batch_normalization(
            features, mean, variance, axis=-1, offset=ops.cast(self.beta, exact), scale=ops.cast(self.gamma, exact),
            epsilon=self.epsilon,
        )  # fmt: skip
        return ops.cast(outputs, self.compute_dtype)


class ConvNormAct(Block):
    """Convolution, batch normalisation and activation; the last two are optional.

    Zero padding is symmetric, `dilation * (kernel_size - 1) // 2` on all four sides, at stride 2 as
    well: there Keras' "same" would pad the far sides only.

    Args:
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, in pixels.
        stride: Step in pixels.
        dilation: Distance between kernel taps in pixels.
        depthwise: Whether each channel has a kernel of its own.
        bias: Whether the convolution has a bias.
        norm: Whether batch normalisation follows.
        activation: A name from the config's `hidden_act`, or None.
        name: Name of the layer.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = False,
        norm: bool = True,
        activation: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.out_channels, self.stride, self.padding = out_channels, stride, (kernel_size - 1) // 2 * dilation
        settings = {
            "kernel_size": kernel_size,
            "strides": stride,
            "dilation_rate": dilation,
            "padding": "valid" if stride > 1 else "same",
            "use_bias": bias,
            "data_format": "channels_last",
            "name": "convolution",
        }
        if depthwise:
            self.convolution = keras.layers.DepthwiseConv2D(**settings)
        else:
            self.convolution = keras.layers.Conv2D(out_channels, **settings)
        self.normalization = BatchNormalization(name="normalization") if norm else None
        self.activation = keras.layers.Activation(ACTIVATIONS[activation]) if activation else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights."""
        self.convolution.build((None, None, None, input_shape[-1]))
        if self.normalization is not None:
            self.normalization.build((None, None, None, self.out_channels))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """`(B, H / stride, W / stride, out_channels)`, rounded up."""
        batch, height, width, _ = input_shape
        height, width = (None if size is None else -(-size // self.stride) for size in (height, width))
        return batch, height, width, self.out_channels

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, out_channels)`, rounded up."""
        if self.stride > 1 and self.padding:
            side = (self.padding, self.padding)
            features = ops.pad(features, ((0, 0), side, side, (0, 0)))
        features = self.convolution(features)
        if self.normalization is not None:
            features = self.normalization(features, training=training)
        if self.activation is not None:
            features = self.activation(features)
        return features


class InvertedResidual(Block):
    """MobileNetV2 block: 1×1 expansion, 3×3 depthwise, 1×1 reduction without activation.

    The input is added when the block changes neither size nor channels. Without widening
    (`expand_ratio` 1) there is no expansion layer.
    """

    def __init__(
        self,
        config: Any,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        widens, act = config.expand_ratio != 1, config.hidden_act
        hidden = make_divisible(round(in_channels * config.expand_ratio), 8) if widens else in_channels
        self.use_residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = ConvNormAct(hidden, activation=act, name="expand_1x1") if widens else None
        self.conv_3x3 = ConvNormAct(
            hidden, 3, stride=stride, dilation=dilation, depthwise=True, activation=act, name="conv_3x3"
        )
        self.reduce_1x1 = ConvNormAct(out_channels, name="reduce_1x1")

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, out_channels)`."""
        residual = features
        if self.expand_1x1 is not None:
            features = self.expand_1x1(features, training=training)
        features = self.reduce_1x1(self.conv_3x3(features, training=training), training=training)
        return residual + features if self.use_residual else features


class InvertedResidualStage(Block):
    """Stages 1 and 2: inverted residuals, the first of which carries the stride."""

    def __init__(
        self, config: Any, in_channels: int, out_channels: int, *, stride: int, num_blocks: int, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.layer = [
            InvertedResidual(
                config,
                in_channels if i == 0 else out_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                name=f"layer_{i}",
            )
            for i in range(num_blocks)
        ]

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, out_channels)`."""
        for block in self.layer:
            features = block(features, training=training)
        return features


def softmax(scores: Any, axis: int) -> Any:
    """Softmax over the patches. Small images have one only, of which Keras' own would warn at every call."""
    return ops.exp(scores - scores) if scores.shape[axis] == 1 else ops.softmax(scores, axis=axis)


def unfold_patches(features: Any, patch_size: int) -> Any:
    """Groups the pixels that stand at the same place of their patches.

    Works on rank 4 at most, so that phone runtimes accept it.

    Args:
        features: `(B, H, W, C)`; `H` and `W` must be multiples of `patch_size`.
        patch_size: Side of a square patch, in map pixels.

    Returns:
        `(B, P, N, C)`: place in the patch (row-major), then patch (row-major), then channel.
        `fold_patches` is the exact inverse.
    """
    _, height, width, channels = ops.shape(features)
    rows, columns = height // patch_size, width // patch_size
    tokens = ops.reshape(features, (-1, columns, patch_size, channels))
    tokens = ops.transpose(tokens, (0, 2, 1, 3))
    tokens = ops.reshape(tokens, (-1, rows, patch_size**2, columns * channels))
    tokens = ops.transpose(tokens, (0, 2, 1, 3))
    return ops.reshape(tokens, (-1, patch_size**2, rows * columns, channels))


def fold_patches(tokens: Any, patch_size: int, height: Any, width: Any) -> Any:
    """Puts tokens `(B, P, N, C)` back to their pixels `(B, height, width, C)`: the inverse of `unfold_patches`."""
    channels = tokens.shape[-1]
    rows, columns = height // patch_size, width // patch_size
    features = ops.reshape(tokens, (-1, patch_size**2, rows, columns * channels))
    features = ops.transpose(features, (0, 2, 1, 3))
    features = ops.reshape(features, (-1, patch_size, columns, channels))
    features = ops.transpose(features, (0, 2, 1, 3))
    return ops.reshape(features, (-1, height, width, channels))


def patch_multiple(size: Any, patch_size: int) -> Any:
    """The next multiple of the patch."""
    return (size + patch_size - 1) // patch_size * patch_size


def resize(features: Any, height: Any, width: Any, *, align_corners: bool) -> Any:
    """Bilinear resize of `(B, H, W, C)`; nothing happens where the size is known to be right.

    Two small matrix products: Keras' own resize has no `align_corners=True`, and takes no size that is
    known only when the model runs.
    """
    _, old_height, old_width, _ = ops.shape(features)
    if isinstance(old_height, int) and isinstance(old_width, int) and (old_height, old_width) == (height, width):
        return features
    down = _interpolation_matrix(old_height, height, align_corners, features.dtype)
    across = _interpolation_matrix(old_width, width, align_corners, features.dtype)
    features = ops.einsum("oh,bhwc->bowc", down, features)
    return ops.einsum("ow,bhwc->bhoc", across, features)


def _interpolation_matrix(old: Any, new: Any, align_corners: bool, dtype: Any) -> Any:
    """`(new, old)` weights of linear interpolation, by PyTorch's two conventions."""
    samples = ops.expand_dims(ops.arange(old, dtype="float32"), 0)
    positions = ops.expand_dims(ops.arange(new, dtype="float32"), 1)
    old, new = ops.cast(old, "float32"), ops.cast(new, "float32")
    if align_corners:
        positions = positions * ((old - 1) / ops.maximum(new - 1, 1.0))
    else:
        positions = ops.clip((positions + 0.5) * (old / new) - 0.5, 0.0, old - 1)
    return ops.cast(ops.maximum(0.0, 1.0 - ops.abs(positions - samples)), dtype)


def check_pixel_values(pixel_values: Any, expected: tuple[int | None, ...]) -> None:
    """Refuses anything but floating point images of at least 32 pixels a side.

    Args:
        pixel_values: Array or tensor; what is not known before the network runs is not checked.
        expected: `(B, H, W, C)` of the network's input, None for what may vary.
    """
    if not hasattr(pixel_values, "shape") or not hasattr(pixel_values, "dtype"):
        raise InputError(
            f"pixel_values is {type(pixel_values).__name__}; expected a float array of shape (B, H, W, {expected[3]}).",
            field="pixel_values",
        )
    if getattr(pixel_values.shape, "rank", 4) is None:
        return
    shape, channels = tuple(pixel_values.shape), expected[3]
    if len(shape) != 4 or shape[3] not in (channels, None):
        first = len(shape) == 4 and shape[1] == channels
        hint = " It looks channels-first: transpose it with (0, 2, 3, 1)." if first else ""
        raise InputError(
            f"pixel_values has shape {shape}; expected (B, H, W, {channels}).{hint}", field="pixel_values", found=shape
        )
    dtype = keras.backend.standardize_dtype(pixel_values.dtype)
    if "float" not in dtype:
        raise InputError(
            f"pixel_values has dtype {dtype}; expected floats in [0, 1]. Use the image processor, or divide by 255.",
            field="pixel_values",
        )
    height, width = shape[1:3]
    if any(side is not None and side < 32 for side in (height, width)):
        raise InputError(
            f"Images of {height}×{width} pixels are too small; MobileViT needs at least 32 per side.",
            field="pixel_values",
            found=(height, width),
            expected=32,
        )
    if any(side and size and side != size for side, size in zip((height, width), expected[1:3], strict=True)):
        raise InputError(
            f"Images of {height}×{width} pixels do not fit this model, which was built for image_size="
            f"{expected[1:3]}; build or load it without image_size= for any size.",
            field="pixel_values",
            found=(height, width),
            expected=expected[1:3],
        )
    if shape[0] == 0:
        raise InputError("pixel_values holds no image (batch size 0).", field="pixel_values", found=shape)


def image_input(config: Any, image_size: Any) -> Any:
    """The symbolic input `pixel_values` `(B, H, W, C)`."""
    sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    known = [side for side in sides if side is not None]
    if len(sides) != 2 or not all(type(side) is int and side >= 32 for side in known):
        raise InputError(
            f"image_size is {image_size!r}; expected None, a side in pixels or (height, width), at least 32 each.",
            field="image_size",
            found=image_size,
        )
    return keras.Input((*sides, config.num_channels), name="pixel_values")
