"""The random transforms of training, on one photo and on a batch, and the order and size of the photos in an epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..data.labelled import LabelledImages
from .recipe import Recipe

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: random.Random,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Image.Image:
    """Cuts out a random part and resizes it to `size` × `size` pixels (Apple's rule).

    Args:
        image: The photo.
        size: Side of the result in pixels.
        rng: Source of randomness.
        area: Smallest and largest share of the photo's area.
        aspect: Smallest and largest width / height, drawn log-uniformly.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
    """
    width, height = image.size
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            break
    else:  # no draw fitted: the largest central part of an allowed aspect
        w = min(width, round(height * aspect[1]))
        h = min(height, round(width / aspect[0]))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), INTERPOLATIONS[interpolation], box=box)


def _shift(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


# Operation -> function of the image and a strength in [-1, 1]; torchvision's set and ranges.
RAND_AUGMENT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "shear_x": lambda image, s: _shift(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: _shift(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: _shift(image, (1, 0, 0.45 * s * image.width, 0, 1, 0)),
    "translate_y": lambda image, s: _shift(image, (1, 0, 0, 0, 1, 0.45 * s * image.height)),
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, round(255 * (1 - abs(s)))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def rand_augment(image: Image.Image, rng: random.Random, operations: int = 2, magnitude: int = 9) -> Image.Image:
    """Applies random operations of one strength (RandAugment; version 2 recipe: 2 operations, 9 of 30)."""
    for name in rng.choices(list(RAND_AUGMENT), k=operations):
        image = RAND_AUGMENT[name](image, rng.choice((-1, 1)) * magnitude / 30)
    return image


def random_erase(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Blackens a random rectangle (version 2 recipe: in a quarter of the photos).

    Args:
        pixels: `(H, W, C)`; left as it is.
        rng: Source of randomness.

    Returns:
        A copy without 2 to 33 % of its area, height / width between 0.3 and 3.3, drawn log-uniformly.
    """
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            pixels = pixels.copy()
            pixels[top : top + h, left : left + w] = 0
            break
    return pixels


def training_photo(
    images: LabelledImages, key: tuple[int, int, int], recipe: Recipe, channel_order: str, interpolation: str
) -> tuple[np.ndarray, int]:
    """One training photo with the recipe's random transforms, and its label.

    Args:
        images: The photos.
        key: `(image size, index, seed)`, as `SizedBatches` yields it.
        recipe: Crop, flip and RandAugment.
        channel_order: `"rgb"` or `"bgr"`, what the network takes.
        interpolation: `"bilinear"` or `"bicubic"`.

    Returns:
        `(size, size, 3)` bytes, and the class index.
    """
    size, index, seed = key
    rng = random.Random(seed)  # noqa: S311 - augmentation, not secrets
    photo = random_resized_crop(images[index], size, rng, (recipe.crop_area, 1.0), interpolation=interpolation)
    if recipe.rand_augment:
        photo = rand_augment(photo, rng, recipe.rand_augment)
    pixels = np.asarray(photo)
    if recipe.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if recipe.random_erase and rng.random() < recipe.random_erase:
        pixels = random_erase(pixels, rng)
    if channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    return pixels, int(images.labels[index])


def mix_batch(
    images: np.ndarray, labels: np.ndarray, num_labels: int, rng: random.Random, mixup: float, cutmix: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes each image of a batch with its predecessor: MixUp or CutMix, one of the two per batch.

    Args:
        images: `(B, C, H, W)` floats.
        labels: `(B,)` class indices.
        num_labels: Number of classes.
        rng: Source of randomness.
        mixup: α of MixUp's Beta distribution; 0 switches it off (version 2 recipe: 0.2).
        cutmix: α of CutMix's Beta distribution; 0 switches it off (version 2 recipe: 1.0).

    Returns:
        The mixed images and `(B, num_labels)` label probabilities.
    """
    targets = np.eye(num_labels, dtype=np.float32)[labels]
    choices = [name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not choices:
        return images, targets
    choice = rng.choice(choices)
    alpha = mixup if choice == "mixup" else cutmix
    share = rng.betavariate(alpha, alpha)
    partner = np.roll(images, 1, axis=0)
    if choice == "mixup":
        images = share * images + (1 - share) * partner
    else:
        height, width = images.shape[2:]
        h, w = round(height * math.sqrt(1 - share)), round(width * math.sqrt(1 - share))
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        images = images.copy()
        images[:, :, top : top + h, left : left + w] = partner[:, :, top : top + h, left : left + w]
        share = 1 - h * w / (height * width)
    return images.astype(np.float32), (share * targets + (1 - share) * np.roll(targets, 1, axis=0)).astype(np.float32)


class SizedBatches:
    """Batches of `(image size, index, seed)` keys: the size travels with the index, as in Apple's sampler.

    So does the seed of the photo's random transforms: they are the same with any number of worker
    processes, and the same after a resume.

    Args:
        length: Number of photos.
        batch_size: Photos per batch, at every size.
        sizes: Image side in pixels for each epoch; the last one holds for any further epoch.
        seed: Order and transforms of epoch e depend on `seed + e` only.
    """

    def __init__(self, length: int, batch_size: int, sizes: list[int], seed: int = 0) -> None:
        self.length, self.batch_size, self.sizes, self.seed = length, batch_size, sizes, seed
        self.drop_last = length >= batch_size
        self.epoch = 0
        # accelerate looks for set_epoch on the sampler of a batch sampler that it has wrapped.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and size of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else math.ceil(self.length / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        rng = np.random.default_rng(self.seed + self.epoch)
        order, seeds = rng.permutation(self.length), rng.integers(2**62, size=self.length)
        size = self.sizes[min(self.epoch, len(self.sizes) - 1)]
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield [(size, int(j), int(s)) for j, s in zip(order[part], seeds[part], strict=True)]
