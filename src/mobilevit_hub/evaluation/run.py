"""Measures checkpoints on labelled photos: one pass over the photos for all models, on any runtime.

The photos are divided into batches by their index alone, `index // batch_size`. Of several processes, each takes every
n-th batch, and the one of rank 0 sums up what all have found; so the result is that of one process, and a run that was
killed redoes only the batches that are missing, with any number of processes.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..data.labelled import LabelledImages, Photo, StreamedImages
from ..data.opening import public_name
from ..data.pipeline import default_workers, prepare_ahead, room_for
from ..errors import CheckpointError, InputError, MobileViTHubWarning
from ..files import json_bytes, write_json
from ..tasks.classification import CLASSIFICATION
from ..tasks.task import LEFT_OUT, MEASURED, UNREADABLE, Task
from .benchmark_sets import BenchmarkSet, find_benchmark, other_scores, read_real_labels, real_labels_of
from .records import Records
from .report import check_card_folder, write_model_index, write_report
from .setup import (
    RESULTS,
    Evaluated,
    begin,
    check_options,
    check_output,
    compiled,
    open_model,
    open_photos,
    processes_of_run,
    settings_of,
)


def evaluate(
    models: str | Path | list[str | Path],
    data: str | Path,
    *,
    runtime: str | None = None,
    split: str | None = None,
    streaming: bool | None = None,
    real_labels: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    strict: bool = False,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    model_index: bool = False,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Measures one or several models on labelled photos.

    Args:
        models: Checkpoint by name, or `.tflite` file; or a list of them, which are then also compared.
        data: Folder of class folders, parquet files, or Hub id, as for `data.open_images`; or a benchmark by name,
            `"imagenet-1k"`, `"imagenet-real"`, `"imagenet-v2"`, `"imagenet-a"`, `"imagenet-r"` or `"imagenet-sketch"`,
            with a copy on this machine as `"imagenet-1k:path"`. Its classes are matched with the labels of a model by
            name, WordNet id or number (`label_maps.label_indices`).
        runtime: `"pt"`, `"tf"` or `"tflite"` for the checkpoints, which the last one exports first; files always run
            in LiteRT. Default: `"pt"`.
        split: Split of the data set, where it has several; default: `"validation"`.
        streaming: Read a data set of the Hub without storing it here; default: only benchmarks.
        real_labels: The published real.json, for `"imagenet-real"`.
        limit: Take so many photos only, evenly over the set; of a stream, the first ones.
        batch_size: Photos that go through a network at a time.
        workers: Threads that prepare photos; default: the processors but one.
        strict: Stop at a photo that cannot be read; otherwise it is left out and counted.
        output: Folder for `results.json`, `results.md`, the table of classes and the plots, and for the rows by which
            a run is resumed. Needed with several processes.
        resume: Continue the run in `output`.
        overwrite: Replace the run in `output`.
        model_index: Write the scores into the `README.md` of the model, which is a folder then.
        progress: Whether to show a progress bar.
        options: As for `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        For one model `{"model", "runtime", "dataset", "count", "metrics": {"top1", "top5", …}, "images_per_second",
        …}`, all shares as fractions, with 95 % intervals in `intervals`; for a list `{"results": […],
        "comparisons": […]}`. Empty in a process of rank above 0.

    Raises:
        InputError: An option is wrong, the classes do not fit the labels, or `output` holds another run.
        NotFoundError: There is no such model, data set or split.
        ImageError: With `strict`, a photo cannot be read.
        SourceError: The Hub, or another process, failed on the way.

    Examples:
        >>> results = evaluate("mobilevit-xxs-tiny-imagenet", "tiny-imagenet/")  # doctest: +SKIP
        >>> results["metrics"]["top1"]  # doctest: +SKIP
        0.4164
    """
    task = CLASSIFICATION
    several = isinstance(models, list | tuple)
    names = [str(model) for model in (models if isinstance(models, list | tuple) else [models])]
    rank, processes = processes_of_run()
    folder = None if output is None else Path(output).expanduser()
    check_options(names, limit, batch_size, workers, folder, processes)
    if folder is not None:
        check_output(folder, rank, processes, resume, overwrite)
    for name in names if model_index else []:
        check_card_folder(name)
    benchmark, copy = find_benchmark(str(data))
    real = read_real_labels(real_labels) if benchmark is not None and benchmark.real else None
    photos = open_photos(str(data), benchmark, copy, split, streaming, limit)
    dataset = benchmark.name if benchmark else public_name(data)
    opened = [open_model(name, runtime, photos.label_names, benchmark, dataset, options) for name in names]
    settings = settings_of(
        opened, photos, dataset=dataset, split=split, limit=limit, batch_size=batch_size,
        real_labels=None if real is None else hashlib.sha256(json_bytes(real)).hexdigest(),
    )  # fmt: skip
    digest = begin(folder, settings, rank, processes, resume, overwrite)
    width = max(map(len, real)) if real else 1
    records = Records(folder, digest, task.row(width), len(opened), rank, keep=resume)
    try:
        done, seconds = _run(
            task, opened, photos, real, records, rank=rank, processes=processes, batch_size=batch_size,
            workers=default_workers() if workers is None else workers, strict=strict, progress=progress and rank == 0,
        )  # fmt: skip
        if rank:
            return {}
        records.wait(batch_size, processes)
        rows = records.rows(batch_size)
    finally:
        records.close()
    # The other processes have done about as much.
    results, details = _results(task, opened, rows, dataset, benchmark, done * processes, seconds)
    comparisons = _comparisons(task, opened, rows)
    whole = {"results": results, "comparisons": comparisons} if several else results[0]
    if folder is not None:
        write_report(folder, results, details, comparisons)
        write_json(folder / RESULTS, whole)
    for name, result in zip(names, results, strict=True) if model_index else []:
        write_model_index(name, result)
    return whole


# --------------------------------------------------------------------------------------------------
# The pass over the photos
# --------------------------------------------------------------------------------------------------


def _run(
    task: Task,
    models: list[Evaluated],
    photos: LabelledImages | StreamedImages,
    real: list[list[int]] | None,
    records: Records,
    *,
    rank: int,
    processes: int,
    batch_size: int,
    workers: int,
    strict: bool,
    progress: bool,
) -> tuple[int, float]:
    """Does the batches of this process that nobody has done; returns how many photos it did, and the seconds."""
    from tqdm import tqdm

    records.read_all()
    count = len(photos) if isinstance(photos, LabelledImages) else records.total
    done = set(records.batches)

    def wanted(index: int) -> bool:
        batch = index // batch_size
        return batch % processes == rank and batch not in done

    expected = photos.count if isinstance(photos, StreamedImages) and count is None else count
    total = None if expected is None else sum(map(wanted, range(expected)))
    if count is not None:
        records.total = count
        if not total:
            return 0, 0.0
    started, did = time.perf_counter(), 0
    labelled = (
        (photo, [photo.label] if real is None else real_labels_of(photo.file_name, real))
        for photo in photos.photos(wanted)
    )
    prepared = prepare_ahead(labelled, _preparation(models), workers=workers, ahead=2 * batch_size)
    # Plain PyTorch suffers from sharing processors with the threads; compiled, each thread computes an image by itself.
    taken = workers if any(compiled(model) is False for model in models) else 0
    with room_for(taken), tqdm(total=total, unit="photo", disable=not progress, mininterval=0.5) as bar:
        for batch, items in groupby(prepared, key=lambda item: item[0][0].index // batch_size):
            rows = _rows_of(task, models, list(items), records.dtype, strict)
            records.add(batch, rows)
            did += len(rows)
            bar.update(len(rows))
    if isinstance(photos, StreamedImages) and count is None:
        records.end(photos.seen)
    return did, time.perf_counter() - started


def _preparation(models: list[Evaluated]) -> Callable[[tuple[Photo, list[int]]], list[np.ndarray] | None]:
    """What the threads do: from a photo to the input of each model; None for a photo without a label."""
    keys = [json_bytes(model.preparation()) for model in models]
    sharing = dict(zip(keys, models, strict=True))

    def prepare(photo: tuple[Photo, list[int]]) -> list[np.ndarray] | None:
        if not photo[1]:
            return None
        picture = photo[0].load()
        inputs = {key: model.classifier.prepare(picture) for key, model in sharing.items()}
        return [inputs[key] for key in keys]

    return prepare


def _rows_of(
    task: Task,
    models: list[Evaluated],
    batch: list[tuple[tuple[Photo, list[int]], Any]],
    dtype: np.dtype,
    strict: bool,
) -> np.ndarray:
    """Runs the models on one batch of photos, each with the classes that are right and what was prepared."""
    rows = np.zeros((len(batch), len(models)), dtype)
    rows["label"] = -1
    usable = []
    for i, ((_, truth), result) in enumerate(batch):
        if isinstance(result, Exception) and strict:
            raise result
        for column, model in enumerate(models):
            rows["label"][i, column, : len(truth)] = model.label_of[truth]
        rows["state"][i] = LEFT_OUT if result is None else UNREADABLE if isinstance(result, Exception) else MEASURED
        if isinstance(result, list):
            usable.append(i)
    for column, model in enumerate(models if usable else []):
        inputs = np.concatenate([batch[i][1][column] for i in usable])
        before = time.perf_counter()
        outputs = model.classifier.probabilities(inputs)
        model.seconds += time.perf_counter() - before
        filled = rows[usable, column]
        try:
            task.fill(filled, outputs, model.taking_part)
        except CheckpointError as error:
            error.message = f"{model.name}: {error.message}"
            raise
        rows[usable, column] = filled
    return rows


# --------------------------------------------------------------------------------------------------
# Results
# --------------------------------------------------------------------------------------------------


def _results(
    task: Task,
    models: list[Evaluated],
    rows: np.ndarray,
    dataset: str,
    benchmark: BenchmarkSet | None,
    done: int,
    seconds: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The result of each model as JSON can hold it, and what else its report shows."""
    state = rows["state"][:, 0] if len(rows) else np.zeros(0)
    measured = state == MEASURED
    unreadable = int((state == UNREADABLE).sum())
    if not measured.any():
        raise InputError(f"{dataset}: none of its photos can be read.", field="data")
    if unreadable:
        warnings.warn(
            f"{dataset}: {unreadable} photos cannot be read and were left out.", MobileViTHubWarning, stacklevel=3
        )
    results, details = [], []
    for column, model in enumerate(models):
        found = task.scores(rows[measured, column], model.labels, np.unique(model.label_of))
        other = sum(m.seconds for m in models) - model.seconds
        results.append(
            {
                "model": model.name,
                "runtime": model.runtime,
                "dataset": dataset,
                "count": int(measured.sum()),
                "metrics": found.pop("metrics"),
                "images_per_second": round(done / max(seconds - other, 1e-9), 2) if done else None,
                "intervals": found.pop("intervals"),
                "unreadable": unreadable,
                "others": other_scores(benchmark, model.source) if benchmark else [],
                "whole": benchmark is None or int(measured.sum()) + unreadable == benchmark.count,
                "sha256": model.sha256,
            }
        )
        details.append(found)
    return results, details


def _comparisons(task: Task, models: list[Evaluated], rows: np.ndarray) -> list[dict[str, Any]]:
    """Each pair of models."""
    measured = rows["state"][:, 0] == MEASURED
    return [
        {
            "first": f"{models[i].name} ({models[i].runtime})",
            "second": f"{models[j].name} ({models[j].runtime})",
            **task.compare(rows[measured, i], rows[measured, j], models[i].labels == models[j].labels),
        }
        for i in range(len(models))
        for j in range(i + 1, len(models))
    ]
