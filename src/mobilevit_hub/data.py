"""Labelled images from a folder, parquet files or the Hub.

Everything is opened through `datasets`; photos are decoded by `images.load_image` only.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import ImageError, InputError, MobileViTHubWarning, NotFoundError, require
from .images import image_files, load_image

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "test")}
HELD_OUT = 0.1
"""Share of each class that is measured on when the photos are not divided."""
CACHE_BYTES = 4 * 1024**3


# --------------------------------------------------------------------------------------------------
# Opening
# --------------------------------------------------------------------------------------------------


class LabelledImages:
    """One split of a data set: `images[i]` is an upright RGB photo, `labels[i]` its class index.

    Args:
        dataset: A `datasets.Dataset` with one image and one class column.
        name: What the user called it; used in messages.
        is_split: Whether the source says which photos are for training and which for validation.
    """

    def __init__(self, dataset: Any, name: str, is_split: bool = True) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        columns = dataset.features
        image_columns = [c for c, feature in columns.items() if isinstance(feature, ImageFeature)]
        label_columns = [c for c, feature in columns.items() if isinstance(feature, ClassLabel)]
        if not image_columns or not label_columns:
            raise InputError(
                f"{name}: has the columns {list(columns)}; expected an image column and a class label column "
                "(a folder with one sub-folder per class has both).",
                field="data",
            )
        self.name, self.is_split, self._dataset = name, is_split, dataset
        self.label_names: list[str] = list(columns[label_columns[0]].names)
        self._images = dataset.cast_column(image_columns[0], ImageFeature(decode=False)).select_columns(
            [image_columns[0]]
        )
        self._column = image_columns[0]
        # A missing label is None in some files and -1 in others, as in the test splits of the Hub.
        labels = [-1 if label is None else label for label in dataset[label_columns[0]]]
        self.labels = np.asarray(labels, dtype=np.int64)
        if not len(self) or self.labels.min() < 0:
            wrong = f"{np.count_nonzero(self.labels < 0):,} photos without a label" if len(self) else "no photos"
            raise InputError(f"{name}: has {wrong}; expected labelled photos.", path=name, field="data")
        self._decoded: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        if self._decoded is not None:
            return Image.fromarray(self._decoded[index])
        return self._read(index)

    def _read(self, index: int) -> Image.Image:
        cell = self._images[int(index)][self._column]
        if cell is None:
            raise ImageError(f"{self.name}: photo {index} is missing.", path=self.name)
        try:
            return load_image(cell["bytes"] if cell["bytes"] is not None else cell["path"])
        except ImageError as error:
            error.message = f"{self.name}: photo {index}: {error.message}"
            raise

    @property
    def in_memory(self) -> bool:
        """Whether the decoded photos are kept."""
        return self._decoded is not None

    def hold_out(self, share: float = HELD_OUT, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
        """Divides the photos of each class at random into a part to train on and a part to measure on.

        Args:
            share: Share of each class that is held out, at least one photo.
            seed: The same seed gives the same division.

        Raises:
            InputError: A class has fewer than two photos.
        """
        rng, held_out = np.random.default_rng(seed), np.zeros(len(self), dtype=bool)
        for label, name in enumerate(self.label_names):
            members = np.flatnonzero(self.labels == label)
            if 0 < len(members) < 2:
                raise InputError(
                    f"{self.name}: class {name!r} has one photo; to hold out photos for validation, each class needs "
                    "two or more. Or pass --validation DATA.",
                    field="validation",
                )
            held_out[rng.permutation(members)[: max(1, round(share * len(members)))]] = True
        train, validation = (self._dataset.select(np.flatnonzero(part)) for part in (~held_out, held_out))
        return LabelledImages(train, self.name), LabelledImages(validation, self.name)

    def keep_in_memory(self, progress: bool = True) -> bool:
        """Decodes all photos once when they fit into 4 GiB, so that training never waits for decoding.

        Returns:
            Whether they are in memory now.
        """
        sample = [np.asarray(self._read(i)).nbytes for i in range(0, len(self), max(1, len(self) // 16))]
        if not sample or max(sample) * len(self) > CACHE_BYTES:
            return False
        from tqdm import tqdm

        indices = tqdm(range(len(self)), desc="decoding", unit="photo", disable=not progress, mininterval=1)
        self._decoded = [np.asarray(self._read(i)) for i in indices]
        return True


def open_images(source: str | Path, split: str = "train") -> LabelledImages:
    """Opens one split of a data set of labelled photos.

    Args:
        source: A folder with one sub-folder per class (or `train/` and `validation/` folders of such),
            a folder or file of parquet, or the id of a data set on the Hub. The prefixes
            `imagefolder:` and `parquet:` say which, where it could be doubtful.
        split: `"train"` or `"validation"`; for validation, `val` and `test` are accepted as well.

    Raises:
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
        return _open_parquet(datasets, files, split, str(source))
    if kind or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise NotFoundError(f"No data set at {path!r}: there is no such file or folder.", path=path)
    try:
        found = datasets.get_dataset_split_names(path)
        wanted = next((s for s in SPLIT_NAMES[split] if s in found), None)
        dataset = None if wanted is None else datasets.load_dataset(path, split=wanted)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"No data set {path!r}: it is neither a folder here nor reachable on the Hub ({type(error).__name__}).",
            path=path,
        ) from error
    if dataset is None:
        raise NotFoundError(f"{path}: has the splits {found}; expected {SPLIT_NAMES[split][0]!r}.", path=path)
    return LabelledImages(dataset, path)


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
    split_folder = next((folder / s for s in SPLIT_NAMES[split] if (folder / s).is_dir()), None)
    other = "validation" if split == "train" else "train"
    if split_folder is None and any((folder / s).is_dir() for s in SPLIT_NAMES[other]):
        raise NotFoundError(f"{folder}: has no {SPLIT_NAMES[split][0]!r} folder.", path=folder)
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


def _open_parquet(datasets: Any, files: list[Path], split: str, name: str) -> LabelledImages:
    is_split = len(files) > 1 or files[0].stem.startswith(sum(SPLIT_NAMES.values(), ()))
    if is_split:
        parts = [[f for f in files if f.stem.startswith(s)] for s in SPLIT_NAMES[split]]
        files = next((part for part in parts if part), [])
        if not files:
            raise NotFoundError(
                f"{name}: no parquet file's name starts with {' or '.join(SPLIT_NAMES[split])}.", path=name
            )
    try:
        dataset = datasets.Dataset.from_parquet([str(f) for f in files])
    except Exception as error:  # of many classes, for a file that is no parquet or a broken one
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise InputError(f"{name}: cannot be read as parquet ({reason}).", path=name, field="data") from error
    return LabelledImages(dataset, name, is_split)
