"""Labelled photos as `tf.data` pipelines, with the checkpoint's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit_hub.data import LabelledImages, SizedBatches, open_images, training_batch
from mobilevit_hub.errors import InputError
from mobilevit_hub.image_processing import MobileViTImageProcessor
from mobilevit_hub.recipes import Recipe
from mobilevit_hub.runtimes import image_processor


def image_dataset(
    data: str | Path | LabelledImages,
    processor: str | MobileViTImageProcessor = "mobilevit-xxs-tiny-imagenet",
    *,
    split: str = "train",
    batch_size: int = 32,
    training: bool | None = None,
    recipe: Recipe | None = None,
    epoch: int = 0,
    one_hot: bool = False,
    keep_in_memory: bool = True,
) -> Any:
    """Opens labelled photos for `model.fit`, `model.evaluate` or `model.predict`.

    Training photos get the recipe's random crop, flip and RandAugment, in another order each epoch, as
    in the PyTorch command; validation photos get the checkpoint's resize and crop.

    Args:
        data: Folder of class folders, parquet, Hub id, or what `open_images` returned.
        processor: A checkpoint's name or its image processor: filter, crop and channel order.
        split: `"train"` or `"validation"`.
        batch_size: Photos per batch.
        training: Whether photos are transformed at random. Default: for `split="train"`.
        recipe: Random transforms and image size. Default: the `"finetune"` recipe at the processor's
            crop size.
        epoch: First epoch; order and transforms depend on it and on the recipe's seed.
        one_hot: Labels as probabilities `(B, classes)` in place of class numbers `(B,)`; always so with
            MixUp or CutMix.
        keep_in_memory: Decode small data sets once.

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
    training = split == "train" if training is None else training
    crop = processor.crop_size["height"]
    recipe = recipe or Recipe(image_size=crop, batch_size=batch_size)
    soft = one_hot or (training and bool(recipe.mixup or recipe.cutmix))
    classes = len(images.label_names)
    size = recipe.sizes[min(epoch, len(recipe.sizes) - 1)] if training else crop
    count = len(images)
    if training:
        batches = SizedBatches(count, batch_size, recipe.sizes, recipe.seed)
        batches.set_epoch(epoch)
        steps = len(batches)
        if len(set(recipe.sizes)) > 1 and epoch == 0 and recipe.size_schedule:
            # One dataset has one image size; the training command opens one per epoch.
            batches.sizes = [size]
    else:
        steps = -(-count // batch_size)
    if steps == 0:
        raise InputError(f"{images.name}: has no photos.", field="data")

    def epochs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not training:
            for first in range(0, count, batch_size):
                indices = range(first, min(first + batch_size, count))
                pixels = processor([images[i] for i in indices], data_format="channels_last", return_tensors="np")
                labels = images.labels[first : first + batch_size]
                yield pixels["pixel_values"], np.eye(classes, dtype=np.float32)[labels] if soft else labels
            return
        for keys in batches:
            pixels, labels = training_batch(
                images, keys, recipe, processor.channel_order, processor.interpolation, one_hot=soft
            )
            yield pixels, labels
        batches.set_epoch(batches.epoch + 1)

    label = tf.TensorSpec((None, classes), tf.float32) if soft else tf.TensorSpec((None,), tf.int64)
    signature = (tf.TensorSpec((None, size, size, 3), tf.float32), label)
    dataset = tf.data.Dataset.from_generator(epochs, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)
    dataset.class_names = images.label_names
    return dataset
