"""Opens labelled photos from a folder, parquet files or the Hub, through `datasets`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..errors import InputError, MobileViTHubWarning, NotFoundError, require
from ..hub.failures import explained_data_set
from ..images.loading import image_files
from .labelled import HELD_OUT, LabelledImages, StreamedImages

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "test")}


def open_images(source: str | Path, split: str = "train", label_column: str | None = None) -> LabelledImages:
    """Opens one split of a data set of labelled photos.

    Args:
        source: A folder with one sub-folder per class (or `train/` and `validation/` folders of such),
            a folder or file of parquet, or the id of a data set on the Hub. The prefixes
            `imagefolder:` and `parquet:` say which, where it could be doubtful.
        split: `"train"`, `"validation"` or another name; for validation, `val` and `test` are accepted as well.
        label_column: As for `LabelledImages`.

    Raises:
        AccessError: The Hub wants its terms accepted first.
        NotFoundError: There is no such source, or it has no such split.
        InputError: It has no image or no class label column.
    """
    require("datasets", "train", "Opening a data set")
    import datasets

    kind, _, rest = str(source).partition(":")
    kind, path = (kind, rest) if rest and kind in ("imagefolder", "parquet") else ("", str(source))
    folder = Path(path)
    if folder.is_dir() or folder.is_file():
        files = [folder] if folder.is_file() else sorted(folder.glob("**/*.parquet"))
        if kind == "imagefolder" or not files:
            return _open_imagefolder(datasets, folder, split)
        return _open_parquet(datasets, files, split, str(source), label_column)
    if kind or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise NotFoundError(f"No data set at {path!r}: there is no such file or folder.", path=path)
    with explained_data_set(path):
        dataset = datasets.load_dataset(path, split=_find_split(datasets, path, split))
    return LabelledImages(dataset, path, label_column=label_column)


def stream_images(
    hub_id: str,
    split: str = "validation",
    limit: int | None = None,
    label_column: str | None = None,
    label_names: list[str] | None = None,
) -> StreamedImages:
    """Opens one split of a data set on the Hub without downloading it first.

    Args:
        hub_id: Id of the data set, such as `"ILSVRC/imagenet-1k"`.
        split: As for `open_images`.
        limit: As for `StreamedImages`.
        label_column: As for `LabelledImages`.
        label_names: As for `StreamedImages`.

    Raises:
        As `open_images`.
    """
    require("datasets", "train", "Opening a data set")
    import datasets

    with explained_data_set(hub_id):
        found = _find_split(datasets, hub_id, split)
        dataset = datasets.load_dataset(hub_id, split=found, streaming=True)
        count = (dataset.info.splits or {}).get(found)
        count = getattr(count, "num_examples", None) or None
        return StreamedImages(dataset, hub_id, count, limit, label_column, label_names)


def _find_split(datasets: Any, hub_id: str, split: str) -> str:
    names, found = SPLIT_NAMES.get(split, (split,)), datasets.get_dataset_split_names(hub_id)
    if not set(names) & set(found):
        raise NotFoundError(f"{hub_id}: has the splits {found}; expected {names[0]!r}.", path=hub_id, field="split")
    return next(s for s in names if s in found)


def open_split(source: str | Path, split: str, seed: int = 0) -> LabelledImages:
    """Opens one split as `open_images` does; undivided photos are divided, a tenth of each class for validation.

    Args:
        source: As for `open_images`.
        split: `"train"` or `"validation"`.
        seed: The same seed gives the same division.
    """
    images = open_images(source, split)
    if images.is_split:
        return images
    train, validation = images.hold_out(seed=seed)
    if split == "train":
        return train
    warnings.warn(
        f"{source} has no validation photos; {len(validation)} of its photos, {HELD_OUT:.0%} of each class, are held "
        "out to measure on.",
        MobileViTHubWarning,
        stacklevel=2,
    )
    return validation


def _open_imagefolder(datasets: Any, folder: Path, split: str) -> LabelledImages:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with one sub-folder per class.", path=folder)
    wanted = SPLIT_NAMES.get(split, (split,))
    split_folder = next((folder / s for s in wanted if (folder / s).is_dir()), None)
    others = {s for every in SPLIT_NAMES.values() for s in every} - set(wanted)
    if split_folder is None and (split not in SPLIT_NAMES or any((folder / s).is_dir() for s in others)):
        raise NotFoundError(f"{folder}: has no {wanted[0]!r} folder.", path=folder)
    directory = split_folder or folder
    # Not by datasets' own reader: it asks the network, and takes a class such as "test tube" for a split.
    photos = {child.name: image_files(child) for child in sorted(directory.iterdir()) if child.is_dir()}
    names = [name for name, files in photos.items() if files]
    if not names:
        raise InputError(f"{directory}: holds no sub-folders of photos; expected one per class.", path=directory)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {
        "image": [str(file) for name in names for file in photos[name]],
        "label": [label for label, name in enumerate(names) for _ in photos[name]],
    }
    return LabelledImages(datasets.Dataset.from_dict(rows, features), str(directory), split_folder is not None)


def _open_parquet(datasets: Any, files: list[Path], split: str, name: str, label_column: str | None) -> LabelledImages:
    is_split = len(files) > 1 or files[0].stem.startswith(sum(SPLIT_NAMES.values(), ()))
    if is_split:
        names = SPLIT_NAMES.get(split, (split,))
        parts = [[f for f in files if f.stem.startswith(s)] for s in names]
        files = next((part for part in parts if part), [])
        if not files:
            raise NotFoundError(f"{name}: no parquet file's name starts with {' or '.join(names)}.", path=name)
    try:
        dataset = datasets.Dataset.from_parquet([str(f) for f in files])
    except Exception as error:  # of many classes, for a file that is no parquet or a broken one
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise InputError(f"{name}: cannot be read as parquet ({reason}).", path=name, field="data") from error
    return LabelledImages(dataset, name, is_split, label_column)


def public_name(data: str | Path) -> str:
    """What a data set is called in files that others get: where a folder lies is nobody's business."""
    path = Path(str(data).removeprefix("imagefolder:").removeprefix("parquet:")).expanduser()
    return path.resolve().name if path.exists() else str(data)
