"""One checkpoint in one library: our PyTorch and Keras twins, stock transformers and timm, behind one function."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.fitting import fit_tensors
from mobilevit_hub.checkpoints.loading import open_checkpoint
from mobilevit_hub.errors import MissingDependencyError
from mobilevit_hub.hub.presets import list_presets
from mobilevit_hub.images.processor import processor_of
from mobilevit_hub.models import model_class
from mobilevit_hub.network.architecture import STAGE_NAMES
from mobilevit_hub.network.names import renames, to_theirs

LIBRARIES = ("PyTorch", "Keras", "transformers", "timm")
"""Our two twins, and two independent implementations."""
SIZES = ((128, 128), (104, 136))
"""Height and width of the images. At the second size the maps of stages 3, 4 and 5 are odd: 13×17, 7×9, 4×5."""
LOGITS = "logits"
Maps = dict[str, np.ndarray]
"""What one library computed: `"128×128 stage3"` → `(B, C, h, w)`, `"128×128 logits"` → `(B, num_labels)`."""
_WITHOUT_EFFECT = {"image_size", "initializer_range", "num_labels", "id2label", "problem_type", "dtype", "odd_map",
                   "output_hidden_states", "return_dict", "aspp_out_channels", "atrous_rates",
                   "semantic_loss_ignore_index"}  # fmt: skip
"""Config fields that do not change what a classifier computes at even sizes; neither does any dropout."""
Run = Callable[[np.ndarray], Maps]
"""Maps images `(B, C, H, W)` to what came out of each place, channels first."""


def size_name(size: tuple[int, int]) -> str:
    """`(104, 136)` → `"104×136"`."""
    return f"{size[0]}×{size[1]}"


def images(channels: int, height: int, width: int) -> np.ndarray:
    """A smooth picture and noise, `(2, channels, height, width)` float32 in [0, 1], the same on every machine."""
    random = np.random.RandomState(0)
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    picture = np.zeros((channels, height, width))
    for waves in (1, 2, 5, 11):
        phase, slope = random.random_sample((2, channels, 1, 1)) * 2 * np.pi
        picture += np.sin(2 * np.pi * waves * (rows * np.cos(slope) + columns * np.sin(slope)) + phase) / waves
    picture = (picture - picture.min()) / np.ptp(picture)
    noise = random.random_sample((channels, height, width))
    return np.stack([0.95 * picture + 0.05 * noise, noise]).astype(np.float32)


def not_installed(library: str) -> str | None:
    """Why a library cannot be here, found without importing it."""
    needed = {"PyTorch": ["torch"], "Keras": ["keras"], "transformers": ["torch"], "timm": ["torch", "timm"]}[library]
    if library == "Keras" and "KERAS_BACKEND" not in os.environ:
        needed.append("tensorflow")
    missing = next((module for module in needed if find_spec(module) is None), None)
    return f"{missing} is not installed" if missing else None


def inexpressible(library: str, config: Any, has_classifier: bool) -> str | None:
    """Why the published implementations do not have the network of a config; our twins have all of them."""
    if library == "timm":
        if not has_classifier:
            return "the checkpoint has no classifier"
        if config.output_stride != 32:
            return f"with output_stride {config.output_stride} it dilates other convolutions than Apple's code"
        return None if timm_architecture(config) else "it has no architecture with this config"
    if library != "transformers":
        return None
    if config.model_type == "mobilevit":
        changed = {
            "n_attn_blocks": list(config.n_attn_blocks) != [2, 4, 3],
            "attention_head_size": config.attention_head_size is not None,
            "use_fusion": not config.use_fusion,
        }
    else:
        changed = {"attn_norm": config.attn_norm == "layer"}
        if config.output_stride != 32:
            return f"with output_stride {config.output_stride} it leaves out the dilation of a convolution of version 2"
    changed["patch_size"] = len(set(config.patch_sizes)) > 1
    names = [f"{name}={getattr(config, name)!r}" for name, is_changed in changed.items() if is_changed]
    return f"its networks have no {', '.join(names)}" if names else None


def differs_by_design(library: str, config: Any, size: tuple[int, int]) -> str | None:
    """Why a library computes something else than the reference on images of a size."""
    if config.model_type == "mobilevit" or not _has_odd_map(config, size):
        return None
    if library == "transformers" and config.odd_map == "apple":
        return "on maps that are no multiple of the patch it drops rows and columns, where Apple's code resizes"
    if library == "timm" and config.odd_map == "stock":
        return "on maps that are no multiple of the patch it resizes, and this config has odd_map='stock'"
    return None


def _has_odd_map(config: Any, size: tuple[int, int]) -> bool:
    """Whether a map of stages 3, 4 or 5 is no multiple of the patch, for images of a size."""
    strides = config.stage_strides[3:]
    return any(
        math.ceil(side / stride) % patch
        for stride, patch in zip(strides, config.patch_sizes, strict=True)
        for side in size
    )


def timm_architecture(config: Any) -> str | None:
    """timm's name of the published network that a config describes; labels, sizes and dropout may differ."""
    for preset in list_presets("image-classification"):
        if preset.timm_id and preset.model_type == config.model_type:
            published = type(config)(**preset.config)
            if all(_setting(published, name) == _setting(config, name) for name in config.field_rules):
                return preset.timm_id.removeprefix("timm/").split(".")[0]
    return None


def _setting(config: Any, name: str) -> Any:
    """One field of a config in the form in which equal networks have equal fields."""
    if name in _WITHOUT_EFFECT or "dropout" in name:
        return None
    value = config.patch_sizes if name == "patch_size" else getattr(config, name)
    if name == "hidden_act":
        return value.replace("swish", "silu")
    return tuple(value) if isinstance(value, list) else value


def run_library(library: str, folder: Path, source_tensors: dict[str, np.ndarray] | None) -> Maps:
    """What a library computes from a checkpoint at all sizes at which it is to be compared.

    Args:
        library: One of `LIBRARIES`.
        folder: The checkpoint.
        source_tensors: Tensors under timm's names, which timm runs; None: those of the checkpoint.

    Raises:
        MissingDependencyError: The library cannot be imported.
        Exception: Whatever a library raises on a checkpoint that it cannot use.
    """
    checkpoint, config, tensors = open_checkpoint(folder)
    task = "image-classification" if "classifier.weight" in tensors else "backbone"
    if library == "Keras":
        del tensors
        run = _open_keras(folder, config, task)
    elif library == "PyTorch":
        del tensors
        run = _watch(model_class(config.model_type, "pt", task).from_pretrained(folder))
    elif library == "transformers":
        run = _watch(_open_transformers(config, task, tensors))
    else:
        with warnings.catch_warnings(action="ignore"):  # without its own preprocessing, Apple's rule is right
            bgr = processor_of(checkpoint).do_flip_channel_order
        run = _open_timm(config, source_tensors or to_theirs(tensors, renames(config, "timm", bgr=bgr)), bgr)
    return {
        f"{size_name(size)} {place}": value
        for size in SIZES
        if not differs_by_design(library, config, size)
        for place, value in run(images(config.num_channels, *size)).items()
    }


def _open_keras(folder: Path, config: Any, task: str) -> Run:
    import keras

    network = model_class(config.model_type, "tf", task)
    classifier = None
    if task == "backbone":
        stages = network.from_pretrained(folder, dtype="float32", out_features=list(STAGE_NAMES))
    else:
        classifier = network.from_pretrained(folder, dtype="float32")
        stages = keras.Model(classifier.backbone.inputs[0], dict(classifier.backbone.feature_maps))

    def array(value: Any) -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.stop_gradient(value)))

    def run(pixels: np.ndarray) -> Maps:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        # Called, not predict(): tracing a graph takes longer than these few images.
        maps = {place: array(value).transpose(0, 3, 1, 2) for place, value in stages(pixels, training=False).items()}
        return maps if classifier is None else {**maps, LOGITS: array(classifier(pixels, training=False))}

    return run


def _open_transformers(config: Any, task: str, tensors: dict[str, np.ndarray]) -> Any:
    """The stock network, built from the config that ours has checked: its own loader would follow what a file asks for.

    Only fields of its own are passed on; what every config of transformers has says nothing about the network.
    """
    import transformers

    name = {"mobilevit": "MobileViT", "mobilevitv2": "MobileViTV2"}[config.model_type]
    config_class = getattr(transformers, f"{name}Config")
    own = {f.name for f in fields(config_class)} - {f.name for f in fields(transformers.PretrainedConfig)}
    values = {field: getattr(config, field) for field in own & config.field_rules.keys()}
    settings = config_class(**{**values, "patch_size": config.patch_sizes[0], "num_labels": config.num_labels})
    if task == "backbone":
        network = getattr(transformers, f"{name}Model")(settings, expand_output=False)
    else:
        network = getattr(transformers, f"{name}ForImageClassification")(settings)
    return _fill(network, tensors, config.model_type)


def _open_timm(config: Any, tensors: dict[str, np.ndarray], bgr: bool) -> Run:
    try:
        import timm  # type: ignore[import-not-found]
    except ImportError as error:  # what it needs is missing; that it is there is known
        raise MissingDependencyError(f"it cannot be imported: {error}", field="timm") from error
    network = timm.create_model(timm_architecture(config) or "", pretrained=False, num_classes=config.num_labels)
    run = _watch(_fill(network, tensors, config.model_type))
    return (lambda pixels: run(np.ascontiguousarray(pixels[:, ::-1]))) if bgr else run  # timm always takes RGB


def _fill(network: Any, tensors: dict[str, np.ndarray], prefix: str) -> Any:
    """Puts tensors under a PyTorch network's own names into it; none may be missing or left over."""
    import torch

    state = network.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    name = f"{type(network).__module__.partition('.')[0]}'s {type(network).__name__}"
    fitted, _ = fit_tensors(tensors, shapes, path="checkpoint", model_name=name, prefix=prefix)
    for name, tensor in fitted.items():
        state[name].copy_(torch.from_numpy(tensor))
    return network.eval()


def _watch(network: Any) -> Run:
    """Runs a PyTorch network of ours, of transformers or of timm, and notes what each place puts out."""
    import torch

    if hasattr(network, "stages"):  # timm's
        modules = [network.stem, *network.stages, network.head]
    else:
        base = network.base_model
        modules = [
            base.conv_stem,
            *base.encoder.layer,
            *([network.classifier] if hasattr(network, "classifier") else []),
        ]
    maps: Maps = {}
    for place, module in zip((*STAGE_NAMES, LOGITS), modules, strict=False):
        module.register_forward_hook(lambda _, __, output, place=place: maps.update({place: output.numpy()}))

    def run(pixels: np.ndarray) -> Maps:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
        return dict(maps)

    return run
