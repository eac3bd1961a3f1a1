"""Opens weights from anywhere: found, hashed, recognised, checked, and brought under our names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.checkpoints.fitting import fit_tensors
from mobilevit_hub.checkpoints.h5_files import read_h5
from mobilevit_hub.checkpoints.reading import check_save_id
from mobilevit_hub.checkpoints.saving import describe_weights
from mobilevit_hub.checkpoints.tensors import check_values, read_tensors
from mobilevit_hub.errors import CheckpointError, InputError, IntegrityError, NotFoundError, OfflineError
from mobilevit_hub.files import readable, sha256_of, temporary_folder
from mobilevit_hub.hub import download as hub
from mobilevit_hub.hub.find import PLACES, Checkpoint, as_path, find_checkpoint
from mobilevit_hub.hub.imagenet import imagenet_labels
from mobilevit_hub.hub.presets import Preset, check_name, find_preset, get_preset
from mobilevit_hub.images.processor import image_processor, processor_from_dict, processor_of, processor_of_config
from mobilevit_hub.models import class_name
from mobilevit_hub.network.configuration import load_config
from mobilevit_hub.network.fields import check_labels
from mobilevit_hub.network.names import SCHEMES, renames, to_ours
from mobilevit_hub.network.structure import COUNTER, Head, tensor_shapes

from .download import download, without_query
from .keras_files import read_keras
from .recognition import Recognised, backbone_of, config_of, head_in, recognise, scheme_in, twins_of, widths_of

ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".h5", ".keras")
TITLES = {
    **{name: scheme.title for name, scheme in SCHEMES.items()},
    "transformers": "transformers",
    "tf_model.h5": "transformers 4 for TensorFlow",
    "keras": "Keras",
}


@dataclass(frozen=True)
class Source:
    """Weights from anywhere, under our names."""

    name: str
    """As the user gave it."""
    file: Path
    """The file that holds the weights."""
    scheme: str
    """Whose names and layout the file has: a key of `TITLES`."""
    config: Any
    processor: Any
    tensors: dict[str, np.ndarray]
    """By our names, in our layout."""
    theirs: dict[str, np.ndarray]
    """As the file has them."""
    network: str
    """The published checkpoint that it is, as far as can be told; the version, for a network of another size."""
    head: Head | None
    """`"classifier"`, or None for a network without one."""
    published: Preset | None
    """The published checkpoint that it is by its name or by what the user says, with nothing changed."""
    sha256: str
    git_blob: str
    """SHA-1 by which git knows the file; the Hub shows it for files that are not stored by hash."""
    is_named: bool
    """Whether it was asked for by the name of a published checkpoint."""
    notes: list[str] = field(default_factory=list)
    """What was decided or left out, one line each."""


@contextmanager
def open_source(
    name: str | Path,
    *,
    model: str | Path | None = None,
    labels: Sequence[str] | None = None,
    channel_order: str | None = None,
    sha256: str | None = None,
    progress: bool = False,
    **places: Any,
) -> Iterator[Source]:
    """Opens weights of any published kind; what was downloaded from an address goes when the block ends.

    Args:
        name: A file (`.pt`, `.pth`, `.bin`, `.safetensors`, `.h5`, `.keras`), a folder, an alias, a Hub id, or an
            https address of a file.
        model: What it must be: an alias, or the folder or `config.json` that describes the network. Needed
            for networks of other than the published sizes, and where published files differ in their
            values only (256 or 384 pixels). Default: what names and shapes say.
        labels: Names of the classes, in the order of the logits. Default: those of the checkpoint; of
            ImageNet for 1000 classes.
        channel_order: `"bgr"` or `"rgb"`, what the result takes. timm's weights are known to take RGB and are turned
            to it; of other sources it says what they take. Default: as the published file.
        sha256: What the file must hash to.
        progress: Whether a download shows a bar.
        places: Options of `hub.find.find_checkpoint`.

    Raises:
        InputError: An argument is wrong.
        SourceError: It is not there, cannot be reached, or has another hash.
        CheckpointError: It is damaged, unsafe, no MobileViT, or not the one that was asked for.
    """
    name = str(name)
    if isinstance(labels, str):  # which is a sequence of letters
        raise InputError(f"labels is {labels[:40]!r}; expected a list of names.", field="labels", found=labels[:40])
    if unknown := places.keys() - set(PLACES):
        raise InputError(f"There is no option {min(unknown)!r}.", field=min(unknown))
    if "://" in name and places.get("local_files_only"):
        raise OfflineError("An address needs the network, which local_files_only=True forbids.")
    if sha256 is not None:
        checked_sha256(sha256)  # before anything is downloaded
    if channel_order not in (None, "bgr", "rgb"):
        raise InputError(
            f"channel_order is {channel_order!r}; expected 'bgr' or 'rgb'.", field="channel_order", found=channel_order
        )
    with temporary_folder() as folder:
        if "://" in name:
            file, checkpoint = download(name, folder, progress=progress), None
            name = without_query(name)  # which may hold a token
        else:
            file, checkpoint = _locate(name, places)
        digests = file_digests(file, sha256)
        yield _read(name, file, checkpoint, _asked_for(model), labels, channel_order, digests)


def _locate(name: str, places: dict[str, Any]) -> tuple[Path, Checkpoint | None]:
    """The file of the weights, and the checkpoint that it belongs to when there is a config."""
    path = as_path(name)
    if path.is_file():
        if path.name in (*hub.WEIGHT_FILES, hub.KERAS_FILE) and (path.parent / hub.CONFIG_FILE).is_file():
            return path, replace(find_checkpoint(path.parent.resolve()), name=name, weights=path)
        return path, None
    if path.suffix in ENDINGS:
        raise NotFoundError(f"There is no file {name!r}.", path=name)
    preset = None if "/" in name else find_preset(name)
    if preset is not None and preset.task == "image-classification" and preset.unavailable:
        raise NotFoundError(
            f"{preset.name!r} is in no Hub repository: download Apple's file {preset.apple_file}, and convert it with "
            f"--model {preset.name}.",
            path=name,
        )
    checkpoint = find_checkpoint(name, **places)
    old = path / hub.KERAS_FILE
    if path.is_dir() and old.is_file() and not any((path / file).is_file() for file in hub.WEIGHT_FILES):
        return old, replace(checkpoint, weights=old)
    return checkpoint.weights_file, checkpoint


def checked_sha256(sha256: Any) -> str:
    """A hash as `sha256_of` writes it, or `InputError`."""
    if not isinstance(sha256, str) or not re.fullmatch("(sha256:)?[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"sha256 is {sha256!r}; expected 64 hexadecimal digits.", field="sha256", found=sha256)
    return sha256.strip().lower().removeprefix("sha256:")


def file_digests(file: Path, expected: str | None = None) -> tuple[str, str]:
    """SHA-256 and git blob id of a file.

    Raises:
        InputError: `expected` is no SHA-256.
        IntegrityError: The file has another hash than `expected`.
    """
    with readable(file):
        found = sha256_of(file)
    if expected is not None and checked_sha256(expected) != found:
        raise IntegrityError(
            f"{file}: has the SHA-256 {found}, expected {expected}: it is another file, or was damaged on the way.",
            path=file,
            found=found,
            expected=expected,
        )
    header = f"blob {file.stat().st_size}\0".encode()
    with open(file, "rb") as content:
        blob = hashlib.file_digest(content, lambda: hashlib.sha1(header, usedforsecurity=False))
    return found, blob.hexdigest()


def _asked_for(model: str | Path | None) -> Preset | Checkpoint | None:
    """The record of an alias, or the checkpoint whose config describes a network."""
    if model is None:
        return None
    if not str(model):
        raise InputError("model is empty; expected an alias, a folder or a config.json.", field="model")
    if "/" not in str(model) and (preset := find_preset(str(model))) is not None:
        return preset
    path = as_path(str(model))
    if path.name == hub.CONFIG_FILE and path.is_file():
        path = path.parent
    if path.is_dir():
        return find_checkpoint(path.resolve())
    check_name(str(model))
    return get_preset(str(model))


def _read(
    name: str,
    file: Path,
    checkpoint: Checkpoint | None,
    asked: Preset | Checkpoint | None,
    labels: Sequence[str] | None,
    channel_order: str | None,
    digests: tuple[str, str],
) -> Source:
    """Reads a file strictly, as the config beside it, the one asked for, or the recognised network wants it."""
    notes: list[str] = []
    described = asked if isinstance(asked, Checkpoint) else checkpoint
    config = load_config(described) if described is not None else None
    theirs, config, scheme, preprocessing = _tensors_of(file, checkpoint, config)
    shapes = {tensor_name: tensor.shape for tensor_name, tensor in theirs.items()}
    if config is None or isinstance(asked, Preset):
        found = recognise(shapes, file)
        _check_asked(asked, found, checkpoint, file)
    else:
        network = backbone_of(config) or config.model_type
        found = Recognised(scheme_in(shapes), network, head_in(shapes), config.num_labels)
    if found.head not in (None, "classifier"):
        raise CheckpointError(f"{file}: holds {found.title}; this release converts classifiers.", path=file)
    preset = asked if isinstance(asked, Preset) else checkpoint.preset if checkpoint is not None else None
    is_known = preset is not None
    if config is None:
        if preset is None:
            preset, is_known = _published_as(name, found, notes)
        config = config_of(preset, num_labels=found.num_labels or 0)
        if config.num_labels == 1000:
            _name_labels(config, imagenet_labels())
    if isinstance(asked, Preset):
        config.image_size = asked.resolution
    if labels is not None:
        _name_labels(config, list(labels))
    if preset is not None and (checkpoint is None or isinstance(asked, Preset)):
        processor = image_processor(preset.name)
    else:
        processor = _processor_beside(described, preprocessing, config, file, notes)
    if channel_order is not None:
        processor.do_flip_channel_order = channel_order == "bgr"
    elif preset is not None and not is_known and found.scheme == "cvnets" and processor.do_flip_channel_order:
        notes.append("taken to take BGR; what ml-cvnets 0.2 or later trained takes RGB: pass --channel-order rgb")
    tensors = _under_our_names(theirs, config, found, file, notes, bgr=processor.do_flip_channel_order)
    describe_weights(
        config, class_name(config.model_type, "image-classification" if found.head else "features"), tensors
    )
    is_changed = labels is not None or channel_order is not None or not found.head
    is_published = is_known and not is_changed and preset is not None and preset.num_labels == config.num_labels
    sha256, git_blob = digests
    return Source(
        name=name, file=file, scheme=scheme or found.scheme, config=config, processor=processor, tensors=tensors,
        theirs=theirs, network=preset.name if preset is not None else found.backbone, head=found.head,
        published=preset if is_published else None,
        is_named=checkpoint is not None and checkpoint.preset is not None,
        sha256=sha256, git_blob=git_blob, notes=notes,
    )  # fmt: skip


def _processor_beside(
    described: Checkpoint | None, preprocessing: dict[str, Any] | None, config: Any, file: Path, notes: list[str]
) -> Any:
    """The preprocessing in the file, or beside the config; by Apple's rule where there is none."""
    if described is not None:
        return processor_of(described)
    if preprocessing is not None:
        return processor_from_dict(preprocessing, file)
    processor = processor_of_config(config)
    side, crop = processor.size["shortest_edge"], processor.crop_size["height"]
    notes.append(
        f"it holds no preprocessing: short side {side}, crop {crop}, {processor.channel_order.upper()} by Apple's "
        "rule; for another pass --model"
    )
    return processor


def _tensors_of(
    file: Path, checkpoint: Checkpoint | None, config: Any
) -> tuple[dict[str, np.ndarray], Any, str | None, dict[str, Any] | None]:
    """The tensors of a file; its config and preprocessing, when it holds them; and the scheme that its kind implies."""
    scheme = preprocessing = None
    if file.suffix == ".keras" or file.name.endswith(".weights.h5"):
        tensors, stated, preprocessing = read_keras(file, config)
        config, scheme = config if file.suffix == ".h5" else stated, "keras"
    elif file.suffix == ".h5":
        tensors, scheme = read_h5(file), "tf_model.h5"
    else:
        tensors, metadata = read_tensors(file)
        if checkpoint is not None:
            check_save_id(checkpoint, metadata)
    check_values(tensors, file)
    return tensors, config, scheme, preprocessing


def _check_asked(
    asked: Preset | Checkpoint | None, found: Recognised, checkpoint: Checkpoint | None, file: Path
) -> None:
    """Raises unless a source is the published network that was asked for."""
    if not isinstance(asked, Preset):
        return
    if checkpoint is not None and checkpoint.preset not in (None, asked):
        raise InputError(
            f"The source is {checkpoint.preset.name!r}, but {asked.name!r} was asked for as model (--model).",
            field="model",
            found=asked.name,
            expected=checkpoint.preset.name,
        )
    if widths_of(asked) != widths_of(get_preset(found.backbone)):
        raise CheckpointError(
            f"{file}: holds {found.title}, but {asked.name!r} was asked for.",
            path=file,
            field="model",
            found=found.backbone,
            expected=asked.name,
        )


def _published_as(name: str, found: Recognised, notes: list[str]) -> tuple[Preset, bool]:
    """The published checkpoint that a file is taken for, and whether its name says so."""
    rows = twins_of(get_preset(found.backbone))
    path = name.replace("\\", "/")
    stem = Path(path).stem
    for row in rows:
        if row.apple_file and f"/{path}".endswith("/" + row.apple_file):
            return row, True
    by_name = find_preset(stem)
    # Apple's files for other resolutions have the same name.
    is_shared = sum(Path(row.apple_file or "").stem == stem for row in rows) > 1
    if by_name in rows and not is_shared:
        return by_name, True  # type: ignore[return-value]  # None is in no list of rows
    row, *others = rows
    if found.head and found.num_labels != 1000:
        notes.append(
            f"its {found.num_labels} labels have no names (--labels), and images are prepared as for {row.name}: short "
            f"side {row.resize}, crop {row.crop}, {row.channel_order.upper()} (--model FOLDER says it better)"
        )
    elif others:
        names = ", ".join(other.name for other in others)
        notes.append(
            f"taken for {row.name} ({row.resolution} px); files of {names} have the same shapes: for one of these pass "
            "--model"
        )
    if found.num_labels == 1000 and not is_shared:
        notes.append(
            f"known as {row.name} by its shapes alone, so its licence is not; 1000 labels are named as ImageNet's, "
            "unless --labels names them"
        )
    return row, False


def _name_labels(config: Any, labels: list[str]) -> None:
    if len(labels) != config.num_labels:
        raise InputError(
            f"{len(labels)} labels were given, but the classifier has {config.num_labels} rows.",
            field="labels",
            found=len(labels),
            expected=config.num_labels,
        )
    config.id2label = check_labels(dict(enumerate(labels)))
    config.label2id = {label: i for i, label in config.id2label.items()}


def _under_our_names(
    theirs: dict[str, np.ndarray], config: Any, found: Recognised, file: Path, notes: list[str], bgr: bool
) -> dict[str, np.ndarray]:
    """All tensors of the network by our names; batch counters that a file lacks are 0."""
    wanted = tensor_shapes(config, found.head)
    if found.scheme == "timm" and bgr:
        notes.append("the stem is turned from RGB, which timm takes, to BGR")
    if found.scheme in SCHEMES:
        tensors = to_ours(theirs, renames(config, found.scheme, found.head, bgr=bgr), file, TITLES[found.scheme])
    else:
        name = f"the {config.model_type} network that was recognised or described"
        tensors, _ = fit_tensors(theirs, wanted, path=file, model_name=name, prefix=config.model_type)
    counters = [name for name in wanted if name.endswith(COUNTER) and name not in tensors]
    if counters:
        notes.append(f"{len(counters)} batch counters, which the file lacks and which have no effect, are 0")
        tensors |= {name: np.zeros((), np.int64) for name in counters}
    return tensors
