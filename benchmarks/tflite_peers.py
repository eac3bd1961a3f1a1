"""A `.tflite` file as another tool makes it: run by `tflite_speed.py` and `comparison.py`, in the tool's environment.

    python tflite_peers.py NAME NETWORK FOLDER SIZE OUT

FOLDER is what `processes.write_weights` wrote. All files take images as the checkpoint does, in float32 from
0 to 1 or, of `tensorflow_int8`, as bytes. The last two know other networks, by timm's names, without weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from inference_contestants import kecam_model
from measuring import images

CALIBRATION_IMAGES = 100


def kecam(network: str, folder: Path, size: int) -> bytes:
    """keras-cv-attention-models, its batch fixed to 1."""
    return of_one_image(kecam_model(network, folder / "kecam.npz", size), size)


def of_one_image(model: Any, size: int) -> bytes:
    """A Keras model with its batch fixed to 1."""
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


def keras_applications(network: str, folder: Path, size: int) -> bytes:
    """A MobileNet of `keras.applications`."""
    import keras
    import tensorflow as tf

    image = keras.Input((size, size, 3), batch_size=1, name="image")
    settings = {"input_shape": (size, size, 3), "weights": None, "classifier_activation": None}
    if network == "mobilenetv2_100":
        model = keras.applications.MobileNetV2(**settings)
    else:
        model = keras.applications.MobileNetV3Large(**settings, include_preprocessing=False)
    return tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, model(image, training=False))).convert()


def kecam_vit(network: str, folder: Path, size: int) -> bytes:
    """A DeiT without distillation, which is a plain ViT, of keras-cv-attention-models."""
    import os

    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported
    from keras_cv_attention_models import beit

    heads = {"deit_tiny_patch16_224": 3, "deit_small_patch16_224": 6}[network]
    settings = {"embed_dim": 64 * heads, "depth": 12, "num_heads": heads, "patch_size": 16, "pretrained": None}
    return of_one_image(beit.ViT(**settings, input_shape=(size, size, 3), classifier_activation=None), size)


def main() -> None:
    """Writes the file, complete or not at all."""
    name, network, folder, size, out = sys.argv[1:]
    tools = (kecam, kecam_own, litert_torch, tensorflow_dynamic, tensorflow_int8, keras_applications, kecam_vit)
    content = {tool.__name__: tool for tool in tools}[name](network, Path(folder), int(size))
    part = Path(f"{out}.part")
    part.write_bytes(content)
    part.replace(out)


if __name__ == "__main__":
    main()
