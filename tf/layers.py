"""Layers that both versions of the network share: the Keras twin of `mobilevit_hub.pt.layers`.

Shapes use the same letters everywhere: B images, C channels, H × W a feature map, P pixels per patch,
N patches per map; maps are channels-last. Attribute names that hold weights are those of the published
checkpoints.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from mobilevit_hub.configuration import make_divisible

PACKAGE = "mobilevit_hub"
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose statistics follow PyTorch's.

    Epsilon 1e-5; momentum 0.9, which PyTorch calls 0.1. The running variance takes the unbiased batch
    variance, n / (n − 1) times the biased one that Keras would take. Counts batches, as checkpoints do.
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

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises `(…, C)`; in training also moves the statistics."""
        if training and self.trainable:
            features = ops.cast(inputs, "float32")
            axes = tuple(range(len(inputs.shape) - 1))
            mean, variance = self._batch_moments(features, axes)
            size = 1
            for axis in axes:
                size = size * ops.shape(inputs)[axis]
            count = ops.cast(size, "float32")
            unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
            keep = self.momentum
            self.moving_mean.assign(self.moving_mean * keep + mean * (1 - keep))
            self.moving_variance.assign(self.moving_variance * keep + unbiased * (1 - keep))
            self.num_batches_tracked.assign(self.num_batches_tracked + 1)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        outputs = ops.batch_normalization(
            ops.cast(inputs, "float32"), mean, variance, axis=-1, offset=self.beta, scale=self.gamma,
            epsilon=self.epsilon,
        )  # fmt: skip
        return ops.cast(outputs, self.compute_dtype)

    def _batch_moments(self, features: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
        return ops.moments(features, axes=axes, synchronized=self.synchronized)


class Block(keras.layers.Layer):
    """A layer made of layers; building it builds them, by tracing one call."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights of every layer inside."""
        self.compute_output_spec(keras.KerasTensor(input_shape, dtype=self.compute_dtype))


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
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.stride, self.padding = stride, (kernel_size - 1) // 2 * dilation
        settings = {
            "kernel_size": kernel_size,
            "strides": stride,
            "dilation_rate": dilation,
            "padding": "valid" if stride > 1 else "same",
            "use_bias": bias,
            "name": "convolution",
            "dtype": self.dtype_policy,
        }
        if depthwise:
            self.convolution = keras.layers.DepthwiseConv2D(**settings)
        else:
            self.convolution = keras.layers.Conv2D(out_channels, **settings)
        self.normalization = BatchNormalization(name="normalization", dtype=self.dtype_policy) if norm else None
        self.activation = keras.layers.Activation(ACTIVATIONS[activation]) if activation else None

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
        self, config: Any, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        hidden = make_divisible(round(in_channels * config.expand_ratio), 8)
        act, dtype = config.hidden_act, self.dtype_policy
        self.use_residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = None
        if config.expand_ratio != 1:
            self.expand_1x1 = ConvNormAct(hidden, activation=act, name="expand_1x1", dtype=dtype)
        self.conv_3x3 = ConvNormAct(
            hidden, 3, stride=stride, dilation=dilation, depthwise=True, activation=act, name="conv_3x3", dtype=dtype
        )
        self.reduce_1x1 = ConvNormAct(out_channels, name="reduce_1x1", dtype=dtype)

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
        self, config: Any, in_channels: int, out_channels: int, *, stride: int, num_blocks: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self.layer = [
            InvertedResidual(
                config,
                in_channels if i == 0 else out_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                name=f"layer_{i}",
                dtype=self.dtype_policy,
            )
            for i in range(num_blocks)
        ]

    def call(self, features: Any, training: bool | None = None) -> Any:
        """Maps `(B, H, W, in_channels)` to `(B, H / stride, W / stride, out_channels)`."""
        for block in self.layer:
            features = block(features, training=training)
        return features


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
