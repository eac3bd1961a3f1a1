"""What an evaluation starts from: its photos and models, its options, and the folder it writes into."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.label_maps import check_imagenet_labels, label_indices
from ..data.labelled import LabelledImages, StreamedImages
from ..data.opening import open_images, public_name, stream_images
from ..data.pipeline import check_workers
from ..errors import InputError, MobileViTHubWarning, NotFoundError
from ..files import json_bytes, sha256_of, temporary_folder, write_json
from ..hub.find import PLACES, Checkpoint, find_checkpoint
from ..hub.imagenet import imagenet_wnids
from ..json_files import check_same_settings
from ..prediction import open_classifier
from ..version import __version__
from .benchmark_sets import BenchmarkSet, label_map
from .records import files_in, path_of

SETTINGS, RESULTS = "settings.json", "results.json"


@dataclass
class Evaluated:
    """A model that is measured."""

    name: str
    """As results name it: without the place of a folder."""
    source: str
    """As the user named it."""
    runtime: str
    classifier: Any
    labels: list[str]
    label_of: np.ndarray
    """Index of the label for each class of the data set; with ReaL, for each of the 1000 classes."""
    taking_part: np.ndarray | None
    """Indices of the labels that take part; None: all."""
    sha256: str
    seconds: float = 0.0
    """Time in the network."""

    def preparation(self) -> dict[str, Any]:
        """What is done to a photo before the network gets it; models that agree in it share its result."""
        return {"runtime": self.runtime, **asdict(self.classifier.preprocessing)}


# --------------------------------------------------------------------------------------------------
# Photos and models
# --------------------------------------------------------------------------------------------------


def open_photos(
    data: str,
    benchmark: BenchmarkSet | None,
    copy: str | None,
    split: str | None,
    streaming: bool | None,
    limit: int | None,
) -> LabelledImages | StreamedImages:
    """The photos of a data set or benchmark."""
    column, names = None, None
    if benchmark is not None:
        column = benchmark.label_column
        names = [imagenet_wnids()[i] for i in benchmark.classes] if column else None
        if copy is None and benchmark.hub_id is None:
            raise NotFoundError(
                f"{benchmark.name}: no Hub repository of it can be opened by name; get it from {benchmark.source}, and "
                f"pass the folder as {benchmark.name}:path.",
                path=benchmark.name,
            )
        if copy is None and Path(benchmark.name).is_dir():
            warnings.warn(
                f"{benchmark.name!r} is a benchmark on the Hub; for the folder of that name write "
                f"'{benchmark.name}:{benchmark.name}'.",
                MobileViTHubWarning,
                stacklevel=3,
            )
        split = split or (benchmark.split if copy is None else None)
        data = copy or str(benchmark.hub_id)
        streaming = copy is None if streaming is None else streaming
    split = split or "validation"
    if streaming and not data.startswith(("imagefolder:", "parquet:")) and not Path(data).expanduser().exists():
        photos: LabelledImages | StreamedImages = stream_images(data, split, limit, column, names)
    else:
        photos = open_images(data, split, column)
        if limit is not None:
            photos = photos.spread(limit)
    return photos


def open_model(
    name: str, runtime: str | None, classes: list[str], benchmark: BenchmarkSet | None, dataset: str, options: Any
) -> Evaluated:
    """Opens a model and finds out which of its labels the classes of the photos are."""
    is_file = name.lower().endswith(".tflite")
    if is_file:
        classifier = open_classifier(name)
        digest, kind = sha256_of(Path(name).expanduser()), "tflite"
    else:
        checkpoint = find_checkpoint(name, **{k: v for k, v in options.items() if k in PLACES})
        opener = _export_and_open if runtime == "tflite" else open_classifier
        classifier = opener(checkpoint, runtime=runtime, **options)
        digest, kind = sha256_of(checkpoint.weights_file), runtime or "pt"
    labels = [str(classifier.labels[i]) for i in range(len(classifier.labels))]
    taking_part = None
    if benchmark is None:
        label_of = label_indices(classes, labels, dataset)
    else:
        check_imagenet_labels(labels, name, benchmark.name)
        label_of = np.arange(1000) if benchmark.real else label_map(benchmark, classes, labels, dataset)
        taking_part = np.array(benchmark.classes) if benchmark.restricted else None
    shown = Path(name).name if is_file else public_name(name)
    return Evaluated(shown, name, kind, classifier, labels, label_of, taking_part, digest)


def _export_and_open(checkpoint: Checkpoint, *, runtime: str | None, **options: Any) -> Any:
    """A checkpoint as a `.tflite` file in fp32, which is read into memory and not kept."""
    from mobilevit_hub.conversion import export_tflite

    with temporary_folder() as folder:
        export_tflite(checkpoint, folder / "model.tflite", progress=False, **options)
        return open_classifier(folder / "model.tflite", runtime=runtime)


def compiled(model: Evaluated) -> bool | None:
    """Whether a PyTorch network runs in C++; None for another runtime."""
    return getattr(getattr(model.classifier, "model", None), "compiled", None)


# --------------------------------------------------------------------------------------------------
# Options, folder and settings
# --------------------------------------------------------------------------------------------------


def processes_of_run() -> tuple[int, int]:
    """Rank of this process and number of processes, as `accelerate launch` and `torchrun` tell them."""
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
        text = os.environ.get(name) or default
        if not text.isascii() or not text.isdigit():
            raise InputError(
                f"The environment variable {name} is {text!r}; expected a whole number, as accelerate launch and "
                "torchrun set it.",
                field=name,
                found=text,
            )
        found.append(int(text))
    rank, processes = found
    if rank >= max(1, processes):
        raise InputError(f"RANK is {rank}, but WORLD_SIZE is {processes}.", field="RANK", found=rank)
    return rank, processes


def check_options(
    names: list[str], limit: int | None, batch_size: int, workers: int | None, output: Path | None, processes: int
) -> None:
    """Raises `InputError` for an option that is out of range, or that several processes need."""
    if not names:
        raise InputError("There is no model to evaluate; name at least one.", field="models")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise InputError(f"{name} is {value!r}; expected a whole number from 1.", field=name, found=value)
    check_workers(workers)
    if processes > 1 and output is None:
        raise InputError(
            f"{processes} processes need a folder that they share; pass --output FOLDER (output=).", field="output"
        )


def check_output(folder: Path, rank: int, processes: int, resume: bool, overwrite: bool) -> None:
    """Refuses to write over an earlier run; each process looks at what is its own."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; expected the name of a folder.", path=folder, field="output")
    if resume and overwrite:
        raise InputError("resume and overwrite contradict each other; choose one.", field="resume")
    mine = [path_of(folder, rank)]
    if rank == 0:
        others = {path_of(folder, other) for other in range(1, processes)}
        mine += [folder / SETTINGS, folder / RESULTS, *(path for path in files_in(folder) if path not in others)]
    if not resume and not overwrite and any(path.exists() for path in mine):
        raise InputError(
            f"{folder} holds an earlier evaluation; continue it with --resume, replace it with --overwrite, or choose "
            "another output folder.",
            path=folder,
            field="output",
        )


def begin(
    folder: Path | None, settings: dict[str, Any], rank: int, processes: int, resume: bool, overwrite: bool
) -> bytes:
    """Notes the settings of a run in its folder, or compares them with those it began with; returns their hash."""
    digest = hashlib.sha256(json_bytes(settings)).digest()
    if folder is None:
        return digest
    file = folder / SETTINGS
    if resume and file.exists():
        check_same_settings(file, settings)
    elif resume and rank == 0:
        warnings.warn(f"{folder} holds no evaluation; it starts at the beginning.", MobileViTHubWarning, stacklevel=3)
    if rank == 0:
        if overwrite:
            for path in files_in(folder):
                if path not in {path_of(folder, other) for other in range(processes)}:
                    path.unlink()
            (folder / RESULTS).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    return digest


def settings_of(models: list[Evaluated], photos: LabelledImages | StreamedImages, **rest: Any) -> dict[str, Any]:
    """Everything that the rows depend on."""
    return {
        "version": __version__,
        "models": [
            {
                "name": m.name,
                "runtime": m.runtime,
                "sha256": m.sha256,
                "preparation": m.preparation(),
                "compiled": compiled(m),  # which rounds in its own way
            }
            for m in models
        ],
        "data": photos.digest(),
        "photos": len(photos) if isinstance(photos, LabelledImages) else "streamed",
        **rest,
    }
