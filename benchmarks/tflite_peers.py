"""A `.tflite` file as another tool makes it: run by `tflite_speed.py`, in the tool's own environment.

    python tflite_peers.py NAME NETWORK FOLDER SIZE OUT

FOLDER is what `processes.write_weights` wrote. All files take images as the checkpoint does, in float32 from
0 to 1 or, of `tensorflow_int8`, as bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contestants import images, kecam_model

CALIBRATION_IMAGES = 100


def kecam(network: str, folder: Path, size: int) -> bytes:
    """keras-cv-attention-models, its batch fixed to 1."""
    model = kecam_model(network, folder / "kecam.npz", size)
    import tensorflow as tf

    function = tf.function(lambda image: model(image, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((1, size, size, 3), tf.float32))
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert()


def kecam_own(network: str, folder: Path, size: int) -> bytes:
    """keras-cv-attention-models, as its own pages convert."""
    model = kecam_model(network, folder / "kecam.npz", size)
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def litert_torch(network: str, folder: Path, size: int) -> bytes:
    """Stock transformers through litert-torch; channels last, as the other files take them."""
    import tempfile

    import litert_torch as converter
    import torch
    from transformers import AutoModelForImageClassification

    class ChannelsLast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForImageClassification.from_pretrained(folder)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=image.permute(0, 3, 1, 2)).logits

    made = converter.convert(ChannelsLast().eval(), (torch.zeros(1, size, size, 3),))
    with tempfile.TemporaryDirectory() as temporary:
        made.export(str(Path(temporary, "made.tflite")))
        return Path(temporary, "made.tflite").read_bytes()


def tensorflow_dynamic(network: str, folder: Path, size: int) -> bytes:
    """The Keras twin with TensorFlow's dynamic-range quantisation."""
    return keras_converter(network, folder, size).convert()


def tensorflow_int8(network: str, folder: Path, size: int) -> bytes:
    """The Keras twin with TensorFlow's quantisation to integers throughout."""
    import tensorflow as tf

    def calibration() -> Iterator[list[np.ndarray]]:
        for image in images(CALIBRATION_IMAGES, size):
            yield [image[None]]

    converter = keras_converter(network, folder, size)
    converter.representative_dataset = calibration
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    return converter.convert()


def keras_converter(network: str, folder: Path, size: int) -> Any:
    """TensorFlow's converter of the trainable Keras twin, with batch 1 and quantisation at its default."""
    import keras
    import tensorflow as tf

    from mobilevit_hub import tf as twin

    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    image = keras.Input((size, size, 3), batch_size=1, name="image")
    model = keras.Model(image, cls.from_pretrained(folder)(image, training=False))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


def main() -> None:
    """Writes the file, complete or not at all."""
    name, network, folder, size, out = sys.argv[1:]
    tools = {tool.__name__: tool for tool in (kecam, kecam_own, litert_torch, tensorflow_dynamic, tensorflow_int8)}
    content = tools[name](network, Path(folder), int(size))
    part = Path(f"{out}.part")
    part.write_bytes(content)
    part.replace(out)


if __name__ == "__main__":
    main()
