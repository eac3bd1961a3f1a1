"""Labelled photos as `tf.data` pipelines, with the checkpoint's own preprocessing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.data import LabelledImages, SizedBatches, mix_batch, open_images, training_photo
from mobilevit_hub.image_processing import MobileViTImageProcessor
from mobilevit_hub.recipes import Recipe
from mobilevit_hub.runtimes import image_processor


def image_dataset(
    data: str | Path | LabelledImages,
    processor: str | Path | MobileViTImageProcessor = "mobilevit-xxs-tiny-imagenet",
    *,
    split: str = "train",
    batch_size: int = 32,
    image_size: int | None = None,
    recipe: Recipe | None = None,
    epoch: int = 0,
    one_hot: bool = False,
    keep_in_memory: bool = True,
) -> Any:
    """Opens labelled photos for `model.fit`, `model.evaluate` or `model.predict`.

    Training photos get the recipe's random crop, flip, RandAugment, MixUp and CutMix, in another order
    each epoch, the same as in the PyTorch command. Validation photos get the checkpoint's resize and
    crop. Both come in the channel order of the checkpoint.

    Args:
        data: Folder of class folders, parquet, Hub id, or what `mobilevit_hub.data.open_images` returned.
        processor: A checkpoint's name, or its image processor.
        split: `"train"` or `"validation"`.
        batch_size: Photos per batch.
        image_size: Side of the training photos in pixels. Default: the processor's crop.
        recipe: Random transforms of the training photos. Default: the `"finetune"` recipe.
        epoch: First epoch; order and transforms depend on it and on the recipe's seed.
        one_hot: Labels as probabilities `(B, classes)` in place of class numbers `(B,)`; always so with
            MixUp or CutMix.
        keep_in_memory: Decode a small data set once, in place of in each epoch.

    Returns:
        A `tf.data.Dataset` of `(pixel_values, labels)`, `(B, H, W, 3)` floats in [0, 1], with the
        attribute `class_names`. Each pass over it is one epoch.

    Raises:
        NotFoundError, InputError, ImageError: As for `mobilevit_hub.data.open_images`.
    """
    import tensorflow as tf

    images = data if isinstance(data, LabelledImages) else open_images(data, split)
    if keep_in_memory and not images.in_memory:
        images.keep_in_memory(progress=False)
    if isinstance(processor, str | Path):
        processor = image_processor(processor)
    recipe, classes = recipe or Recipe(), len(images.label_names)
    soft = one_hot or (split == "train" and bool(recipe.mixup or recipe.cutmix))
    size = processor.crop_size["height"]
    if split == "train":
        size = image_size or size
        batches = SizedBatches(len(images), batch_size, [size], recipe.seed)
        batches.set_epoch(epoch)
        steps = len(batches)
    else:
        steps = -(-len(images) // batch_size)

    def training_epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for keys in batches:
            photos = [
                training_photo(images, key, recipe, processor.channel_order, processor.interpolation) for key in keys
            ]
            pixels = np.stack([photo for photo, _ in photos]).astype(np.float32) / 255
            labels = np.asarray([label for _, label in photos])
            if recipe.mixup or recipe.cutmix:
                rng = random.Random(sum(seed for _, _, seed in keys))  # noqa: S311 - augmentation, not secrets
                first = pixels.transpose(0, 3, 1, 2)
                first, labels = mix_batch(first, labels, classes, rng, recipe.mixup, recipe.cutmix)
                pixels = first.transpose(0, 2, 3, 1)
            elif soft:
                labels = np.eye(classes, dtype=np.float32)[labels]
            yield pixels, labels
        batches.set_epoch(batches.epoch + 1)

    def validation_epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(images), batch_size):
            part = range(first, min(first + batch_size, len(images)))
            pixels = processor([images[i] for i in part], data_format="channels_last", return_tensors="np")
            labels = images.labels[part.start : part.stop]
            yield pixels["pixel_values"], np.eye(classes, dtype=np.float32)[labels] if soft else labels

    label = tf.TensorSpec((None, classes), tf.float32) if soft else tf.TensorSpec((None,), tf.int64)
    dataset = tf.data.Dataset.from_generator(
        training_epoch if split == "train" else validation_epoch,
        output_signature=(tf.TensorSpec((None, size, size, 3), tf.float32), label),
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
    dataset.class_names = images.label_names
    return dataset
