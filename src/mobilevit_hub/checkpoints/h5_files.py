"""Reading HDF5 weights and `.keras` archives, which may be damaged or hostile, without Keras.

`read_h5` reads the `tf_model.h5` that transformers 4 wrote. `check_weights_h5` and `inspect_keras` look at
files of our own Keras twin before Keras opens them.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, MobileViTHubError, listed, require
from ..json_files import MAX_BYTES as MAX_CONFIG_BYTES
from ..json_files import parse_json
from ..network.structure import HEADS
from .tensors import MAX_TENSORS, refuse_others, refused

MAX_MEMBER_BYTES = 2 * 1024**3
# What a compressed archive may unpack to: weights hardly shrink, the two JSON files do.
MAX_EXPANSION = 1.1
EXPANSION_ROOM = 1_000_000
KERAS_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
KERAS_CLASSES = (
    "TFMobileViTBackbone", "TFMobileViTForImageClassification", "TFMobileViTModel",
    "TFMobileViTV2Backbone", "TFMobileViTV2ForImageClassification", "TFMobileViTV2Model",
)  # fmt: skip
# Where the names of the network start; what stands before them names Keras' groups.
_ROOTS = ("mobilevit", *(head.removesuffix(".") for head in HEADS))
_ENDINGS = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


def read_h5(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a `tf_model.h5` under our names and in our layout.

    The file has no `num_batches_tracked`, and neither has the result.

    Args:
        path: A weights file of transformers' TFMobileViT classes.

    Returns:
        The tensors by name: convolutions `(out, in, height, width)`, matrices `(out, in)`.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: The file is damaged, refers to other files, or is of another kind.
        MissingDependencyError: h5py is not installed.
    """
    tensors: dict[str, np.ndarray] = {}
    with _datasets(path, "f", "floating point numbers") as datasets:
        for name, dataset in datasets.items():
            ours = _our_name(name, path)
            if ours in tensors:
                raise refused(path, name, f"is the second {ours!r} in the file")
            array = dataset[()]
            tensors[ours] = _our_layout(array.astype(array.dtype.newbyteorder("="), copy=False))
    return tensors


def check_weights_h5(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Checks a `.weights.h5` before Keras opens it; no value is read.

    Args:
        path: What `model.save_weights` wrote.

    Returns:
        The shape of every dataset by its name in the file.

    Raises:
        CheckpointError: The file is damaged, holds links, other things than numbers, or describes more
            than it stores.
        NotFoundError, MissingDependencyError: As `read_h5`.
    """
    with _datasets(path, "fiu", "numbers") as datasets:
        return {name: dataset.shape for name, dataset in datasets.items()}


def inspect_keras(path: str | Path) -> dict[str, Any]:
    """Checks a `.keras` archive and the weights in it before Keras opens it; nothing is built.

    What is safe to open next is the model alone: `keras.saving.load_model(path, compile=False)`.

    Args:
        path: What `model.save` of one of this package's Keras models wrote.

    Returns:
        Its `config.json`: `class_name`, `module`, `registered_name`, and in `config` the arguments of the model, of
        which `config` is the network's config, not yet checked.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: Its `config.json` is no proper JSON object.
        CheckpointError: The archive is damaged, holds other parts, unpacks to far more than its size, holds
            the model of another package, or its weights are refused by `check_weights_h5`.
        MissingDependencyError: h5py is not installed.
    """
    path = Path(path)
    refuse_others(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            contents = {name: archive.read(name) for name in KERAS_MEMBERS}  # which compares the checksums
        text = contents["config.json"].decode()
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # zipfile raises nearly anything on damaged files
        raise CheckpointError(f"{path}: damaged Keras file ({error}).", path=path) from error
    config = parse_json(text, f"{path}, config.json")
    _check_class(config, path)
    with _datasets(path, "fiu", "numbers", contents["model.weights.h5"]):
        pass  # checked on entering
    return config


@contextmanager
def _datasets(path: str | Path, kinds: str, expected: str, content: bytes | None = None) -> Iterator[dict[str, Any]]:
    """Opens an HDF5 file, or its content, and gives its datasets by name, all checked before any is read.

    Accepted are the `kinds` of type, in NumPy's letters; `expected` says them in words.
    """
    path = Path(path)
    refuse_others(path)
    require("h5py", "tf", f"Reading {path.name}")
    import h5py

    stored = path.stat().st_size if content is None else len(content)
    datasets: dict[str, Any] = {}
    claimed = 0

    def refuse_links(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = f"another file, {link.filename!r}" if isinstance(link, h5py.ExternalLink) else repr(link.path)
                place = f"{group.name}/{name}".lstrip("/")
                raise CheckpointError(f"{path}: {place!r} is a link to {target}; refused.", path=path, field=place)

    def check(name: str, item: Any) -> None:
        nonlocal claimed
        if isinstance(item, h5py.Group):
            refuse_links(item)
        if not isinstance(item, h5py.Dataset):
            return
        if len(datasets) == MAX_TENSORS:
            raise CheckpointError(f"{path}: holds more than {MAX_TENSORS:,} tensors.", path=path)
        if item.dtype.kind not in kinds or item.dtype.itemsize > 8 or item.shape is None:
            raise refused(path, name, f"is no array of {expected} (type {item.dtype})")
        # A tiny file can describe a huge tensor, and one that stands in another file. The sizes are those that the
        # file states, so they are also added up; h5py's own product overflows.
        size = math.prod(item.shape)
        claimed += size * item.dtype.itemsize
        stores = item.id.get_storage_size()
        if item.external or item.is_virtual or stores < size * item.dtype.itemsize or claimed > stored:
            raise refused(path, name, f"claims {size:,} values but the file stores fewer")
        datasets[name] = item

    try:
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            refuse_links(file)
            file.visititems(check)  # which follows no link, and visits each thing once
            yield datasets
    except MobileViTHubError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged HDF5 file: {reason}.", path=path) from error


def _our_name(name: str, path: Any) -> str:
    """`mobilevit/tf_mobile_vi_t_model/mobilevit/conv_stem/normalization/gamma:0` → `mobilevit.conv_stem.….weight`."""
    parts = name.removesuffix(":0").split("/")
    starts = [i for i, part in enumerate(parts) if part in _ROOTS]
    if not starts or parts[-1] not in _ENDINGS:
        raise CheckpointError(
            f"{path}: {name!r} is no weight of a MobileViT; expected the tf_model.h5 of transformers' "
            "TFMobileViT classes.",
            path=path,
            field=name,
        )
    # A segmentation head has a classifier of its own inside.
    start = next((i for i in reversed(starts) if parts[i] != "classifier"), starts[-1])
    return ".".join([*parts[start:-1], _ENDINGS[parts[-1]]])


def _our_layout(array: np.ndarray) -> np.ndarray:
    """Convolutions, depthwise ones too, from `(kh, kw, I, O)` to `(O, I, kh, kw)`; matrices transposed."""
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses other parts than Keras writes, and parts that unpack to too much."""
    members = [m for m in archive.infolist() if not (m.filename.startswith("assets/") and m.is_dir())]
    if sorted(m.filename for m in members) != sorted(KERAS_MEMBERS):
        raise CheckpointError(
            f"{path}: holds {listed(repr(m.filename) for m in members) or 'nothing'}; expected the parts of a .keras "
            f"file, each once and no other: {', '.join(KERAS_MEMBERS)}.",
            path=path,
        )
    for member in members:
        limit = MAX_CONFIG_BYTES if member.filename.endswith(".json") else MAX_MEMBER_BYTES
        if member.file_size > limit:
            raise CheckpointError(
                f"{path}: {member.filename} unpacks to {member.file_size:,} bytes; the limit is {limit:,}.", path=path
            )
    size, unpacked = path.stat().st_size, sum(m.file_size for m in members)
    if unpacked > MAX_EXPANSION * size + EXPANSION_ROOM:
        raise CheckpointError(
            f"{path}: its {size:,} bytes unpack to {unpacked:,}, which weights never do; refused as a possible zip "
            "bomb.",
            path=path,
        )


def _check_class(config: dict[str, Any], path: Path) -> None:
    module, name = config.get("module"), config.get("class_name")
    # Keras looks for the registered name first.
    ours = str(module).startswith("mobilevit_hub.tf.") and config.get("registered_name") == f"mobilevit_hub>{name}"
    if not ours or name not in KERAS_CLASSES:
        raise CheckpointError(
            f"{path}: holds a {name!r} of {module!r}, not a model of this package; expected one of "
            f"{', '.join(KERAS_CLASSES)}.",
            path=path,
            field="class_name",
            found=name,
        )
    arguments = config.get("config")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("config"), dict):
        raise CheckpointError(f"{path}: its config.json does not describe the network of the {name}.", path=path)
