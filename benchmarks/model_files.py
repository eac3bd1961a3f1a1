"""The network of a benchmark with random weights, in the form that each contestant opens."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from foreign_weights import kecam_weights, timm_weights

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
SIZE = 256
PICTURES = 100  # the fewest that calibration accepts


def write_files(network: str, folder: Path, contestants: Iterable[str], size: int = SIZE, **changes: Any) -> dict:
    """Writes what contestants open.

    Args:
        network: An alias of a preset.
        folder: Where to write.
        contestants: Functions of `inference_contestants.py`.
        size: Side of the images in pixels, which is fixed in `.tflite` files.
        changes: Config fields to change.

    Returns:
        The file or folder of each contestant.
    """
    names = set(contestants)
    files = dict.fromkeys(names, folder) | write_weights(network, folder, **changes)
    if names & {"tflite", "tflite_int8"}:
        files |= {"tflite": write_tflite(network, folder, "fp32", size)}
    if "tflite_int8" in names:
        files |= {"tflite_int8": write_tflite(network, folder, "int8", size)}
    if names & {"onnxruntime", "openvino"}:
        files |= dict.fromkeys(("onnxruntime", "openvino"), write_onnx(network, folder, size))
    return files


def write_weights(network: str, folder: Path, **changes: Any) -> dict[str, Path]:
    """Random weights, every tensor of which matters, for PyTorch, Keras and the libraries that name them otherwise.

    Args:
        network: An alias of a preset.
        folder: Where to write them.
        changes: Config fields to change.
    """
    from mobilevit_hub import tf as twin

    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    model = cls(cls.config_class.from_preset(network, **changes))
    rng = np.random.default_rng(0)
    for name, weight in model.named_weights().items():
        shape = tuple(weight.variable.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if weight.kind == "plain":
            positive = name.endswith(("running_var", "weight"))
            weight.variable.assign(rng.random(shape) - 0.5 + positive)
        else:
            inputs = np.prod(shape[:2] if weight.kind == "depthwise" else shape[:-1])
            weight.variable.assign(rng.normal(0, 1.4 / np.sqrt(inputs), shape))
    model.save_pretrained(folder)

    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    np.savez(folder / "timm.npz", **timm_weights(tensors))
    np.savez(folder / "kecam.npz", **kecam_weights(tensors))
    timm = dict.fromkeys(("timm", "timm_compiled", "timm_frozen"), folder / "timm.npz")
    return timm | {"kecam": folder / "kecam.npz"}


def write_tflite(network: str, folder: Path, precision: str, size: int) -> Path:
    """This package's `.tflite` file of the weights in `folder`; it takes floats in the order of the weights."""
    from mobilevit_hub.conversion import export_tflite
    from mobilevit_hub.images.processor import processor_for

    print(f"{network}: making {precision}.tflite …", file=sys.stderr, flush=True)
    processor_for(size, size, "bilinear", "rgb").save_pretrained(folder)  # so that nothing is reversed
    pictures, out = folder / "pictures", folder / f"{precision}.tflite"
    if precision == "int8" and not pictures.exists():
        write_pictures(pictures)
    export_tflite(
        folder,
        out,
        precision=precision,
        resolution=size,
        input_type="float32",
        output_type="logits",
        calibration=pictures if precision == "int8" else None,
    )
    return out


def write_onnx(network: str, folder: Path, size: int) -> Path:
    """The folded network of the weights in `folder` as ONNX, for any number of images."""
    import torch

    from mobilevit_hub.pt import MobileViTForImageClassification, MobileViTV2ForImageClassification
    from mobilevit_hub.pt.inference.folded import FoldedClassifier

    print(f"{network}: making folded.onnx …", file=sys.stderr, flush=True)
    cls = MobileViTV2ForImageClassification if "v2" in network else MobileViTForImageClassification
    module, out = FoldedClassifier(cls.from_pretrained(folder).folded()).eval(), folder / "folded.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        program.save(out)
    return out


def picture(seed: int) -> Any:
    """A picture of soft random colours, as Pillow has it."""
    from PIL import Image

    colours = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(colours).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def write_pictures(folder: Path) -> Path:
    """Pictures for calibration. What they show changes no time."""
    folder.mkdir()
    for seed in range(PICTURES):
        picture(seed).save(folder / f"{seed}.png")
    return folder
