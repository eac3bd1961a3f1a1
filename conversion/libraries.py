"""One checkpoint in one library: our PyTorch and Keras twins, stock transformers and timm, behind one function.

`run_in_processes` gives each framework a process of its own, one after the other: memory is that of the larger and
not the sum, and nothing that a library prints reaches the terminal. Such a process runs this module.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.architecture import STAGE_NAMES
from mobilevit_hub.checkpoints import open_checkpoint
from mobilevit_hub.errors import ExportError, MissingDependencyError
from mobilevit_hub.fitting import fit_tensors
from mobilevit_hub.hub import WEIGHT_FILES
from mobilevit_hub.names import renames, to_theirs
from mobilevit_hub.presets import list_presets
from mobilevit_hub.runtimes import model_class
from mobilevit_hub.tensors import read_tensors, to_safetensors

LIBRARIES = ("PyTorch", "Keras", "transformers", "timm")
"""Our two twins, and two independent implementations."""
SIZES = ((128, 128), (104, 136))
"""Height and width of the images. At the second size the maps of stages 3, 4 and 5 are odd: 13×17, 7×9, 4×5."""
LOGITS = "logits"
Maps = dict[str, np.ndarray]
"""What one library computed: `"128×128 stage3"` → `(B, C, h, w)`, `"128×128 logits"` → `(B, num_labels)`."""
_PROCESSES = (("PyTorch", "transformers", "timm"), ("Keras",))
_SOURCE_FILE = "source.safetensors"
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


# --------------------------------------------------------------------------------------------------
# Who can run what
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------------------


def _outputs_of(library: str, folder: Path, source_tensors: dict[str, np.ndarray] | None) -> Maps:
    """What a library computes from a checkpoint at all sizes at which it is to be compared."""
    _, config, tensors = open_checkpoint(folder)
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
        run = _open_timm(config, source_tensors or to_theirs(tensors, renames(config, "timm")))
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


def _open_timm(config: Any, tensors: dict[str, np.ndarray]) -> Run:
    try:
        import timm  # type: ignore[import-not-found]
    except ImportError as error:  # what it needs is missing; that it is there is known
        raise MissingDependencyError(f"it cannot be imported: {error}", field="timm") from error
    network = timm.create_model(timm_architecture(config), pretrained=False, num_classes=config.num_labels)
    run = _watch(_fill(network, tensors, config.model_type))
    if config.model_type == "mobilevitv2":
        return run
    return lambda pixels: run(np.ascontiguousarray(pixels[:, ::-1]))  # RGB there, BGR here


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


# --------------------------------------------------------------------------------------------------
# All libraries, here or in processes of their own
# --------------------------------------------------------------------------------------------------


def run_here(
    libraries: list[str], folder: Path, source_tensors: dict[str, np.ndarray] | None, progress: bool
) -> dict[str, Maps | Exception]:
    """What each library computes, or why it does not.

    Args:
        libraries: Some of `LIBRARIES`.
        folder: A checkpoint.
        source_tensors: Tensors under timm's names for timm; None: those of the checkpoint.
        progress: Show a progress bar.
    """
    outputs: dict[str, Maps | Exception] = {}
    for library in _bar(libraries, progress):
        try:
            outputs[library] = _outputs_of(library, folder, source_tensors)
        except Exception as error:  # whatever a foreign library raises on a file that it cannot use
            outputs[library] = error
    return outputs


def run_in_processes(
    libraries: list[str], folder: Path, source_tensors: dict[str, np.ndarray] | None, progress: bool
) -> dict[str, Maps | Exception]:
    """As `run_here`, in one process for PyTorch, transformers and timm and then one for Keras."""
    endings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        workplace = Path(name)
        if source_tensors is not None and "timm" in libraries:
            (workplace / _SOURCE_FILE).write_bytes(to_safetensors(source_tensors, {}))
        groups = [[library for library in group if library in libraries] for group in _PROCESSES]
        for group in _bar([group for group in groups if group], progress):
            endings |= dict.fromkeys(group, _run_process(group, folder, workplace))
        return {library: _result(workplace, library, endings[library]) for library in libraries}


def _bar(items: list[Any], progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(items, desc="verifying", disable=not progress, leave=False))


def _result(workplace: Path, library: str, ending: str) -> Maps | Exception:
    """What a process has written for one of its libraries."""
    maps, failure = workplace / f"{library}.safetensors", workplace / f"{library}.txt"
    if maps.is_file():
        return read_tensors(maps)[0]
    kind, _, text = failure.read_text("utf-8").partition(": ") if failure.is_file() else ("", "", ending)
    return MissingDependencyError(text) if kind == MissingDependencyError.__name__ else ExportError(text)


def _run_process(libraries: list[str], folder: Path, workplace: Path) -> str:
    """Runs libraries in a process, which writes into `workplace`; returns how it ended."""
    log = workplace / "log"
    # -P: what lies in the folder in which the user works is not imported.
    command = [sys.executable, "-P", "-m", __spec__.name, str(folder), str(workplace), *libraries]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "-1",  # where float32 products are rounded more than the tolerances allow
    }
    with (
        open(log, "wb") as output,
        subprocess.Popen(  # noqa: S603 - this interpreter and this module
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            status = process.wait()
        finally:
            process.kill()  # which only matters when the wait was interrupted
    last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}: {last}"
    return f"its process ended with status {status}: {last}"


class _WithoutTorch(PathFinder):
    """Finds every module but PyTorch."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)


def _hide_torch(folder: Path) -> None:
    """Spares the Keras process PyTorch, which transformers would load for nothing: 300 MB, and seconds."""
    import keras

    pickled = not (folder / WEIGHT_FILES[0]).is_file()  # which PyTorch reads
    if keras.backend.backend() == "tensorflow" and "torch" not in sys.modules and not pickled:
        sys.meta_path[:] = [_WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent, which never writes, has ended in whatever way
    os._exit(1)


def _main(folder: Path, workplace: Path, libraries: list[str]) -> None:
    """Runs libraries and writes for each its maps, or a text with the error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    source = workplace / _SOURCE_FILE
    for library in libraries:
        try:
            if library == "Keras":
                _hide_torch(folder)
            source_tensors = read_tensors(source)[0] if library == "timm" and source.is_file() else None
            maps = _outputs_of(library, folder, source_tensors)
            (workplace / f"{library}.safetensors").write_bytes(to_safetensors(maps, {}))
        except Exception as error:  # as in run_here
            (workplace / f"{library}.txt").write_text(f"{type(error).__name__}: {error}", "utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
