"""Labelled photos as `tf.data` pipelines, with the checkpoint's own preprocessing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.data.labelled import LabelledImages
from mobilevit_hub.data.opening import open_split
from mobilevit_hub.errors import InputError, MobileViTHubError, require
from mobilevit_hub.images.processor import MobileViTImageProcessor, image_processor
from mobilevit_hub.recipes.recipe import RULES, Recipe
from mobilevit_hub.recipes.transforms import SizedBatches, mix_batch, training_photo

Batch = list[tuple[int, int, int]]
"""`(image size, index, seed)` of each photo, as `SizedBatches` yields them."""


def image_dataset(
    data: Any,
    processor: str | Path | MobileViTImageProcessor,
    *,
    split: str = "train",
    batch_size: int = 32,
    image_size: int | None = None,
    recipe: Recipe | None = None,
    epoch: int = 0,
    one_hot: bool = False,
    keep_in_memory: bool = True,
    workers: int = 0,
) -> Any:
    """Opens labelled photos for `model.fit`, `model.evaluate` or `model.predict`.

    Training photos get the recipe's random crop, flip, RandAugment, erasing, MixUp and CutMix, in another
    order each epoch; the same as in the PyTorch command. Validation photos get the checkpoint's resize and
    crop. Both come in the channel order of the checkpoint.

    Args:
        data: Folder of class folders (or `train/` and `validation/` of such; undivided, a tenth of each
            class is the validation part), parquet, Hub id, a `datasets.Dataset`, or what
            `mobilevit_hub.data.open_images` returned; the last two are taken whole.
        processor: The checkpoint's name, or its image processor.
        split: `"train"` or `"validation"`.
        batch_size: Photos per batch.
        image_size: Side of the training photos in pixels. Default: the processor's.
        recipe: Random transforms of the training photos, and their seed; nothing else of it counts here.
            Default: the `"finetune"` recipe.
        epoch: What the first pass is, for an interrupted run that goes on: it decides the order of the photos.
        one_hot: Labels as probabilities `(B, classes)` in place of class numbers `(B,)`; always so with the
            recipe's MixUp or CutMix.
        keep_in_memory: Decode a data set of up to 4 GiB once, in place of in each epoch.
        workers: Threads that prepare batches; 0: one that works beside the training.

    Returns:
        A `tf.data.Dataset` of `(pixel_values, labels)`, `(B, H, W, 3)` floats in [0, 1]; each pass over it is
        one epoch. It has the attributes `class_names`, and `class_weight`: for `model.fit`, as if each class
        had the same number of photos.

    Raises:
        NotFoundError, InputError, ImageError: As for `mobilevit_hub.data.open_images`; a photo that is read
            only when its batch is made ends in TensorFlow's own error, with the same text.
        ConfigError: `batch_size` or `image_size` is out of range.
    """
    require("tensorflow", "tf", "image_dataset")
    import tensorflow as tf

    RULES["batch_size"]("batch_size", batch_size)
    if image_size is not None:
        RULES["image_size"]("image_size", image_size)
    recipe = recipe or Recipe()
    if split not in ("train", "validation"):
        raise InputError(f"split is {split!r}; expected 'train' or 'validation'.", field="split", found=split)
    if isinstance(data, str | Path):
        images = open_split(data, split, recipe.seed)
    else:
        images = data if isinstance(data, LabelledImages) else LabelledImages(data, "the data set")
    if keep_in_memory and not images.in_memory:
        images.keep_in_memory(progress=False)
    if isinstance(processor, str | Path):
        processor = image_processor(processor)
    if split == "train":
        size = processor.crop_size["height"] if image_size is None else image_size
        one_hot = one_hot or bool(recipe.mixup or recipe.cutmix)
        order = SizedBatches(len(images), batch_size, [size], recipe.seed)
        order.set_epoch(epoch)

        def one_epoch() -> Iterator[Batch]:
            yield from order
            order.set_epoch(order.epoch + 1)

        photos = training_batches(images, one_epoch, size, processor, recipe, one_hot=one_hot, workers=workers)
        photos = photos.apply(tf.data.experimental.assert_cardinality(len(order)))
    else:
        photos = validation_batches(images, processor, batch_size, one_hot=one_hot, workers=workers)
    counts = np.bincount(images.labels, minlength=len(images.label_names))
    photos.class_names = images.label_names
    photos.class_weight = {
        index: len(images) / (np.count_nonzero(counts) * int(count)) for index, count in enumerate(counts) if count
    }
    return photos


def training_batches(
    images: LabelledImages,
    batches: Callable[[], Iterable[Batch]],
    size: int,
    processor: MobileViTImageProcessor,
    recipe: Recipe,
    *,
    one_hot: bool,
    workers: int = 0,
    failures: list[Exception] | None = None,
) -> Any:
    """Batches of training photos with the recipe's random transforms, as a `tf.data.Dataset`.

    Args:
        images: The photos.
        batches: Called at the start of each pass; which photos, in which order, with which random seeds.
        size: Image side in pixels, that of the batches.
        processor: Channel order and interpolation.
        recipe: Random transforms.
        one_hot: Labels as probabilities; needed for MixUp and CutMix.
        workers: Threads that prepare batches beside the one that trains.
        failures: Gets the error of a photo that cannot be read, which TensorFlow turns into a text.
    """
    import tensorflow as tf

    classes = len(images.label_names)

    def prepare(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys, settings = batch.tolist(), (processor.channel_order, processor.interpolation)
        photos, classes_of = zip(*(training_photo(images, key, recipe, *settings) for key in keys), strict=True)
        pixels, labels = np.stack(photos).astype(np.float32) / 255, np.asarray(classes_of)
        if not one_hot:
            return pixels, labels
        rng = random.Random(sum(seed for _, _, seed in keys))  # noqa: S311 - augmentation, not secrets
        mixed, targets = mix_batch(pixels.transpose(0, 3, 1, 2), labels, classes, rng, recipe.mixup, recipe.cutmix)
        return np.ascontiguousarray(mixed.transpose(0, 2, 3, 1)), targets

    def all_keys() -> Iterator[np.ndarray]:
        yield from (np.asarray(batch, dtype=np.int64) for batch in batches())

    dataset = tf.data.Dataset.from_generator(all_keys, output_signature=tf.TensorSpec((None, 3), tf.int64))
    return _prepared(dataset, prepare, (size, size), classes if one_hot else None, workers, failures)


def validation_batches(
    images: LabelledImages,
    processor: MobileViTImageProcessor,
    batch_size: int,
    *,
    one_hot: bool,
    workers: int = 0,
    failures: list[Exception] | None = None,
) -> Any:
    """Batches of photos as the checkpoint's processor prepares them, in order, as a `tf.data.Dataset`.

    Args:
        images: The photos.
        processor: Resize, crop and channel order.
        batch_size: Photos per batch; the last one may have fewer.
        one_hot: Labels as probabilities.
        workers: Threads that prepare batches beside the one that uses them.
        failures: As for `training_batches`.
    """
    import tensorflow as tf

    classes = len(images.label_names)

    def prepare(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = range(int(first), min(int(first) + batch_size, len(images)))
        pixels = processor([images[i] for i in part], data_format="channels_last", return_tensors="np")["pixel_values"]
        labels = images.labels[part.start : part.stop]
        return pixels, np.eye(classes, dtype=np.float32)[labels] if one_hot else labels

    sides = (processor.crop_size["height"], processor.crop_size["width"])
    firsts = tf.data.Dataset.range(0, len(images), batch_size)
    return _prepared(firsts, prepare, sides, classes if one_hot else None, workers, failures)


@contextmanager
def photo_errors(failures: list[Exception]) -> Iterator[None]:
    """Raises the error of a photo that could not be read; TensorFlow makes a page of text of it."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def _prepared(
    batches: Any,
    prepare: Callable[..., Any],
    sides: tuple[int, int],
    classes: int | None,
    workers: int,
    failures: list[Exception] | None,
) -> Any:
    """Runs `prepare` on each element, ahead of its use."""
    import tensorflow as tf

    def checked(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return prepare(batch)
        except MobileViTHubError as error:
            if failures is not None:
                failures.append(error)
            raise

    def run(batch: Any) -> tuple[Any, Any]:
        kinds = (tf.float32, tf.int64 if classes is None else tf.float32)
        pixels, labels = tf.numpy_function(checked, [batch], kinds)
        pixels.set_shape((None, *sides, 3))
        labels.set_shape((None,) if classes is None else (None, classes))
        return pixels, labels

    batches = batches.map(run, **({"num_parallel_calls": workers, "deterministic": True} if workers else {}))
    options = tf.data.Options()
    # Several machines that are given this data set share each batch, not the list of files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options).prefetch(2)
