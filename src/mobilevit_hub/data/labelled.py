"""Labelled photos in rows, in memory or from a stream; they are decoded by `images.load_image` only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, InputError
from ..hub.failures import explained_data_set
from ..images.loading import load_image

HELD_OUT = 0.1
"""Share of each class that is measured on when the photos are not divided."""
CACHE_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Photo:
    """A labelled photo of a data set, not decoded yet."""

    index: int
    label: int
    content: bytes | str | None
    """Bytes of the file, or its path; None where the data set has lost it."""
    file_name: str | None
    """What the file is or was called."""
    dataset: str
    """Names the data set in errors."""

    def load(self) -> Image.Image:
        """The upright RGB photo.

        Raises:
            ImageError, MissingDependencyError: As `load_image`; the message says which photo.
        """
        if self.content is None:
            raise ImageError(f"{self.dataset}: photo {self.index} is missing.", path=self.dataset)
        try:
            return load_image(self.content)
        except ImageError as error:
            error.message = f"{self.dataset}: photo {self.index}: {error.message}"
            raise


def _find_columns(columns: Any, name: str, label_column: str | None) -> tuple[str, str]:
    """The image column and the label column among the features of a data set."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    columns = columns or {}
    image_columns = [c for c, feature in columns.items() if isinstance(feature, ImageFeature)]
    label_columns = [c for c, feature in columns.items() if isinstance(feature, ClassLabel) or c == label_column]
    if not image_columns or not label_columns:
        raise InputError(
            f"{name}: has the columns {list(columns)}; expected an image column and a class label column "
            "(a folder with one sub-folder per class has both).",
            field="data",
        )
    return image_columns[0], label_columns[0] if label_column not in label_columns else str(label_column)


def _photo(row: dict[str, Any], column: str, index: int, label: int, name: str) -> Photo:
    cell = row[column] or {"bytes": None, "path": None}
    content = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    return Photo(index, label, content, cell["path"], name)


class LabelledImages:
    """One split of a data set: `images[i]` is an upright RGB photo, `labels[i]` its class index.

    Args:
        dataset: A `datasets.Dataset` with one image and one class column.
        name: What the user called it; used in messages.
        is_split: Whether the source says which photos are for training and which for validation.
        label_column: Column with the names of the classes as text, for a data set without a class label column.
    """

    def __init__(self, dataset: Any, name: str, is_split: bool = True, label_column: str | None = None) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        self._column, of_labels = _find_columns(dataset.features, name, label_column)
        self.name, self.is_split, self._dataset, self._label_column = name, is_split, dataset, label_column
        self._images = dataset.cast_column(self._column, ImageFeature(decode=False)).select_columns([self._column])
        labels = dataset[of_labels]
        if isinstance(dataset.features[of_labels], ClassLabel):
            self.label_names: list[str] = list(dataset.features[of_labels].names)
        else:
            names, labels = np.unique(list(map(str, labels)), return_inverse=True)
            self.label_names = names.tolist()
        # A missing label is None in some files and -1 in others, as in the test splits of the Hub.
        labels = [-1 if label is None else label for label in labels]
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
        return self.photo(index).load()

    def photo(self, index: int) -> Photo:
        """One photo, not decoded; reads the bytes where they are part of a parquet file."""
        return _photo(self._images[int(index)], self._column, int(index), int(self.labels[index]), self.name)

    def photos(self, wanted: Callable[[int], bool]) -> Iterator[Photo]:
        """The photos whose index is wanted, in order, not decoded."""
        return (self.photo(i) for i in range(len(self)) if wanted(i))

    def spread(self, count: int) -> LabelledImages:
        """A part of `count` photos, evenly over the whole set, as sets are often sorted by class."""
        if count >= len(self):
            return self
        indices = np.arange(count) * len(self) // count
        return LabelledImages(self._dataset.select(indices), self.name, self.is_split, self._label_column)

    def digest(self) -> str:
        """A hash of the labels and their names, by which a data set is known again."""
        text = "\0".join(self.label_names).encode()
        return hashlib.sha256(text + self.labels.astype("<i8").tobytes()).hexdigest()

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
        sample = [np.asarray(self[i]).nbytes for i in range(0, len(self), max(1, len(self) // 16))]
        if not sample or max(sample) * len(self) > CACHE_BYTES:
            return False
        from tqdm import tqdm

        indices = tqdm(range(len(self)), desc="decoding", unit="photo", disable=not progress, mininterval=1)
        self._decoded = [np.asarray(self[i]) for i in indices]
        return True


class StreamedImages:
    """One split of a data set on the Hub, read from its start to its end without being stored here.

    Args:
        dataset: A `datasets.IterableDataset` with one image and one class column.
        name: Its id.
        count: Photos, where the Hub says how many.
        limit: Where to stop; None: at the end.
        label_column: As for `LabelledImages`.
        label_names: Names of the classes, where they stand as text in `label_column`.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        count: int | None,
        limit: int | None = None,
        label_column: str | None = None,
        label_names: list[str] | None = None,
    ) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        if dataset.features is None:
            dataset = dataset._resolve_features()  # reads the head of the first file
        self._column, self._label_column = _find_columns(dataset.features, name, label_column)
        feature = dataset.features[self._label_column]
        self._is_text = not isinstance(feature, ClassLabel)
        self.name, self.seen = name, 0
        self.count = count if limit is None or count is None else min(limit, count)
        self.label_names = list(label_names or [] if self._is_text else feature.names)
        self._dataset = dataset.cast_column(self._column, ImageFeature(decode=False)).select_columns(
            [self._column, self._label_column]
        )
        if limit is not None:
            self._dataset = self._dataset.take(limit)

    def photos(self, wanted: Callable[[int], bool]) -> Iterator[Photo]:
        """The photos whose index is wanted, in order, not decoded; `seen` counts all that were read.

        Raises:
            SourceError: The connection or the Hub failed on the way.
            InputError: A photo has no label.
        """
        numbers = {name: i for i, name in enumerate(self.label_names)}
        with explained_data_set(self.name, opened=True):
            for index, row in enumerate(self._dataset):
                self.seen = index + 1
                if wanted(index):
                    label = row[self._label_column]
                    label = numbers.get(label, -1) if self._is_text else -1 if label is None else label
                    if label < 0:
                        raise InputError(
                            f"{self.name}: photo {index} has no label; expected labelled photos.", field="data"
                        )
                    yield _photo(row, self._column, index, label, self.name)

    def digest(self) -> str:
        """A hash of the names of the classes."""
        return hashlib.sha256("\0".join(self.label_names).encode()).hexdigest()
