"""The phone form of a Keras classifier: its graph in the operations that phones run fastest, as a `.tflite` file.

The network is that of `inference.folding`. On top of them: batch 1 and static
sizes throughout, no tensor above rank 4, and the preprocessing after the resize: the image goes in as bytes in RGB,
and the stem's kernel takes the division by 255 and the channel order of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mobilevit_hub.errors import ExportError
from mobilevit_hub.inference.folding import Convolution, FoldedNetwork, Linear

from .model import ACTIVATIONS, Function, Operations, constant, folded_network, kernel_of

INPUT = "image"
OUTPUTS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"probabilities": tf.nn.softmax, "logits": tf.identity}
"""What a file can return, by the name of its output: a function of the network's own output."""


class PhoneOperations(Operations):
    """Operations that XNNPACK takes into one partition and that GPU delegates accept: batch 1, rank 4.

    Args:
        stem: The layer that sees the image.
        scale: Factor that takes the values of the image to [0, 1].
        flip: Whether the checkpoint takes the channels in the opposite order of the image.
    """

    def __init__(self, stem: Any, scale: float, flip: bool) -> None:
        self.stem, self.scale, self.flip = stem, scale, flip

    def convolution(self, layer: Convolution) -> Function:
        """At stride 2 with explicit padding: TensorFlow's "SAME" would pad the far sides only."""
        kernel, run_convolution = kernel_of(layer)
        if layer is self.stem:
            kernel = self.scale * (kernel[:, :, ::-1] if self.flip else kernel)
        stride, sides = layer.stride, (layer.padding, layer.padding)

        def run(features: tf.Tensor) -> tf.Tensor:
            if stride > 1 and layer.padding:
                features = tf.pad(features, ((0, 0), sides, sides, (0, 0)))
            steps, mode = (1, stride, stride, 1), "VALID" if stride > 1 else "SAME"
            features = run_convolution(features, constant(kernel), steps, mode, dilations=(layer.dilation,) * 2)
            return ACTIVATIONS[layer.activation](tf.nn.bias_add(features, constant(layer.bias)))

        return run

    def linear(self, layer: Linear) -> Function:
        """A pointwise convolution of maps and tokens, a matrix product of vectors; then its activation."""
        kernel = layer.weight.T

        def run(features: tf.Tensor) -> tf.Tensor:
            if len(features.shape) == 4:
                product = tf.nn.conv2d(features, constant(kernel[None, None]), 1, "VALID")
            else:
                product = tf.matmul(features, constant(kernel))
            return ACTIVATIONS[layer.activation](tf.nn.bias_add(product, constant(layer.bias)))

        return run

    def unfold_patches(self, features: tf.Tensor, patch: int) -> tf.Tensor:
        """`(1, H, W, C)` to `(1, P, N, C)`."""
        _, height, width, channels = features.shape
        count = height * width // patch**2
        tokens = tf.nn.space_to_depth(features, patch) if patch > 1 else features
        return tf.transpose(tf.reshape(tokens, (1, count, patch**2, channels)), (0, 2, 1, 3))

    def fold_patches(self, tokens: tf.Tensor, patch: int, height: int, width: int) -> tf.Tensor:
        """`(1, P, N, C)` to `(1, height, width, C)`: the inverse of `unfold_patches`."""
        channels = tokens.shape[-1]
        shape = (1, height // patch, width // patch, patch**2 * channels)
        features = tf.reshape(tf.transpose(tokens, (0, 2, 1, 3)), shape)
        return tf.nn.depth_to_space(features, patch) if patch > 1 else features

    def attend(self, projected: tf.Tensor, heads: int) -> tf.Tensor:
        """The heads and, within a head, the places in the patch share an axis, so that the batch stays 1."""
        _, places, count, channels = projected.shape
        size = channels // heads // 3
        projected = tf.reshape(projected, (1, places * count, 3 * heads, size))
        parts = tf.split(tf.transpose(projected, (0, 2, 1, 3)), 3, axis=1)
        query, key, value = (tf.reshape(part, (1, heads * places, count, size)) for part in parts)
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        context = tf.reshape(tf.matmul(weights, value), (1, heads, places * count, size))
        return tf.reshape(tf.transpose(context, (0, 2, 1, 3)), (1, places, count, heads * size))

    def pool(self, scores: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """The scores `(1, P, N, 1)` lie in memory as `(1, P, 1, N)`."""
        _, places, count, _ = tokens.shape
        return tf.matmul(tf.nn.softmax(tf.reshape(scores, (1, places, 1, count))), tokens)

    def resize(self, features: tf.Tensor, height: int, width: int, *, align_corners: bool) -> tf.Tensor:
        """Bilinear resize; nothing happens where the size is right."""
        if tuple(features.shape[1:3]) == (height, width):
            return features
        return tf.raw_ops.ResizeBilinear(
            images=features, size=(height, width), align_corners=align_corners, half_pixel_centers=not align_corners
        )


def convert_network(
    network: FoldedNetwork, size: tuple[int, int], *, input_type: str, output: str, channel_order: str
) -> bytes:
    """Makes the float32 file of a classifier.

    Args:
        network: The folded network: `folded()` of a classifier.
        size: Height and width of the image in pixels.
        input_type: `"uint8"`, 0 to 255, or `"float32"`, 0 to 1.
        output: One of `OUTPUTS`.
        channel_order: `"rgb"` or `"bgr"`, what the checkpoint takes.

    Raises:
        ExportError: TensorFlow's converter failed.
    """
    is_bytes = input_type == "uint8"
    operations = PhoneOperations(network.features[0], 1 / 255 if is_bytes else 1.0, channel_order == "bgr")
    compute = folded_network(network, operations)
    module = tf.Module()  # which holds the function only: variables reachable from it would stay variables

    def run(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {output: OUTPUTS[output](compute(tf.cast(image, tf.float32)))}

    signature = tf.TensorSpec((1, *size, 3), tf.uint8 if is_bytes else tf.float32, INPUT)
    module.run = tf.function(run, [signature], autograph=False, jit_compile=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.run.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        return converter.convert()
    except Exception as error:  # of several classes
        raise ExportError(f"TensorFlow's converter failed: {' '.join(str(error).split())[:300]}") from error
