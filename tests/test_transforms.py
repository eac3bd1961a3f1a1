"""The random transforms of training, and the order of the photos."""

import math
import random

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from pictures import noise, smooth
from PIL import Image, ImageOps

from mobilevit_hub.recipes.transforms import (
    RAND_AUGMENT,
    SizedBatches,
    mix_batch,
    rand_augment,
    random_erase,
    random_resized_crop,
)


def dice(seed):
    return random.Random(seed)  # noqa: S311


# --- random crop ---------------------------------------------------------------------------------------------------


def drawn_boxes(image, count, **options):
    """What `random_resized_crop` cuts out, from the coordinates that the pixels hold."""
    boxes = []
    for seed in range(count):
        crop = np.asarray(random_resized_crop(image, 64, dice(seed), **options)).astype(float)
        # the mean of a linear ramp is its middle, and the slope its extent
        x, y = crop[:, :, 0].mean(axis=0), crop[:, :, 1].mean(axis=1)
        boxes.append([(v[-8] - v[7]) / 48 * 64 for v in (x, y)] + [x.mean(), y.mean()])
    return np.array(boxes)


def test_random_crops_have_area_aspect_and_place_within_range():
    y, x = np.mgrid[0:240, 0:240].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, x], -1))
    w, h, cx, cy = drawn_boxes(image, 400, area=(0.25, 0.75)).T
    area, aspect = w * h / 240**2, w / h
    assert 0.24 < area.min() < 0.3 and 0.7 < area.max() < 0.79
    assert 0.73 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.37
    assert abs(np.log(aspect).mean()) < 0.03  # log-uniform: as often high as wide
    assert abs(area.mean() - 0.5) < 0.04
    assert (cx - w / 2).min() > -4 and (cx + w / 2).max() < 244
    assert np.std(cx) > 10 and np.std(cy) > 10


def test_whole_image_is_taken_where_no_crop_fits():
    image = Image.fromarray(smooth(40, 400))
    # every drawn area is far higher than the picture, so the largest central part of aspect 4 / 3 is left
    found = random_resized_crop(image, 32, dice(0), area=(1.0, 1.0))
    expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=(173, 0, 226, 40))
    assert found.tobytes() == expected.tobytes()


def test_full_area_and_square_aspect_is_a_plain_resize():
    image = Image.fromarray(noise(48, 48))
    for name, filter in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        found = random_resized_crop(image, 32, dice(1), (1, 1), (1, 1), interpolation=name)
        assert found.tobytes() == image.resize((32, 32), filter).tobytes()


def test_crop_depends_on_the_generator_only():
    image = Image.fromarray(noise())
    crops = [random_resized_crop(image, 32, dice(seed)).tobytes() for seed in (3, 3, 4)]
    assert crops[0] == crops[1] != crops[2]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_tiny_and_thin_photos_can_be_cropped(size):
    assert random_resized_crop(Image.new("RGB", size), 32, dice(0)).size == (32, 32)


# --- RandAugment ---------------------------------------------------------------------------------------------------

GEOMETRIC = ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
ENHANCING = ["brightness", "color", "contrast", "sharpness"]


def augmented(name, array, strength):
    return np.asarray(RAND_AUGMENT[name](Image.fromarray(array), strength)).astype(int)


def test_operations_are_the_fourteen_of_torchvision():
    others = ["identity", "posterize", "solarize", "autocontrast", "equalize"]
    assert sorted(RAND_AUGMENT) == sorted(GEOMETRIC + ENHANCING + others)


@pytest.mark.parametrize("name", [*GEOMETRIC, *ENHANCING, "identity", "posterize"])
def test_strength_0_changes_nothing(name):
    assert np.array_equal(augmented(name, noise(), 0.0), noise())


@pytest.mark.parametrize("name", [*GEOMETRIC, *ENHANCING])
def test_strength_changes_the_picture_both_ways(name):
    results = [augmented(name, noise() // 2 + 60, s).tobytes() for s in (-0.6, -0.3, 0.3, 0.6)]
    assert len(set(results)) == 4


@pytest.mark.parametrize("strength", [0.4, -0.4])
def test_translate_moves_by_its_share_of_the_side(strength):
    array = noise(50, 100)
    pixels = round(0.45 * 0.4 * 100)
    moved = augmented("translate_x", array, strength)
    expected = np.zeros_like(array)
    if strength > 0:  # PIL's matrix says where a pixel comes from
        expected[:, :-pixels] = array[:, pixels:]
    else:
        expected[:, pixels:] = array[:, :-pixels]
    assert np.abs(moved - expected.astype(int)).max() <= 1  # 45 % of 100 is not quite whole in binary
    upright = augmented("translate_y", array.transpose(1, 0, 2).copy(), strength)
    assert np.array_equal(upright, moved.transpose(1, 0, 2))


def test_shear_moves_each_row_by_its_height():
    array = np.zeros((40, 120, 3), np.uint8)
    array[:, 60:] = 200
    sheared = augmented("shear_x", array, -1.0)[:, :, 0]
    edges = (sheared[:, 30:] > 100).argmax(axis=1) + 30
    assert np.abs(edges - (60 + 0.3 * (np.arange(40) + 0.5))).max() <= 1
    assert np.array_equal(augmented("shear_y", array.transpose(1, 0, 2).copy(), -1.0)[:, :, 0], sheared.T)


def test_rotate_turns_by_30_degrees_at_full_strength():
    array = np.zeros((101, 101, 3), np.uint8)
    array[48:53, 88:93] = 255  # 40 right of the centre
    y, x = np.argwhere(augmented("rotate", array, 1.0)[:, :, 0] > 128).mean(axis=0) - 50
    assert math.degrees(math.atan2(-y, x)) == pytest.approx(30, abs=1)
    assert math.hypot(x, y) == pytest.approx(40, abs=0.7)


@pytest.mark.parametrize("strength", [0.5, -0.5])
def test_brightness_scales(strength):
    expected = np.clip(noise() * (1 + 0.9 * strength), 0, 255)
    assert np.abs(augmented("brightness", noise(), strength) - expected).max() <= 1


@pytest.mark.parametrize("strength", [0.5, -0.5])
def test_contrast_and_color_scale_the_distance_to_grey(strength):
    array, factor = noise(), 1 + 0.9 * strength
    grey = np.asarray(Image.fromarray(array).convert("L")).astype(float)
    for name, base in (("contrast", np.full_like(grey, round(grey.mean()))), ("color", grey)):
        expected = np.clip(base[..., None] + factor * (array - base[..., None]), 0, 255)
        assert np.abs(augmented(name, array, strength) - expected).max() <= 1.5


def test_sharpness_is_contrast_of_edges():
    flat = np.full((20, 20, 3), 90, np.uint8)
    assert np.array_equal(augmented("sharpness", flat, 1.0), flat)
    assert (
        np.std(augmented("sharpness", noise(), 0.5)[1:-1])
        > np.std(noise())
        > np.std(augmented("sharpness", noise(), -0.5))
    )


def test_posterize_keeps_the_upper_bits():
    assert np.array_equal(augmented("posterize", noise(), 1.0), noise() & 0b11110000)
    assert np.array_equal(augmented("posterize", noise(), -0.3), noise() & 0b11111110)


def test_solarize_inverts_what_is_bright():
    array = noise().astype(int)
    for strength, threshold in ((1.0, 0), (0.5, 128), (-0.5, 128)):
        assert np.array_equal(augmented("solarize", noise(), strength), np.where(array < threshold, array, 255 - array))


def test_autocontrast_and_equalize_spread_the_values():
    dull = (noise() // 4 + 100).astype(np.uint8)
    stretched = (dull.astype(int) - 100) * 255 / 63
    assert np.abs(augmented("autocontrast", dull, 0.3) - stretched).max() <= 1
    assert np.array_equal(augmented("equalize", dull, 0.3), np.asarray(ImageOps.equalize(Image.fromarray(dull))))


def test_rand_augment_applies_as_many_operations_as_asked():
    image = Image.fromarray(noise())
    assert rand_augment(image, dice(0), 0).tobytes() == image.tobytes()
    results = {rand_augment(image, dice(seed)).tobytes() for seed in range(40)}
    assert len(results) > 20
    assert rand_augment(image, dice(5)).tobytes() == rand_augment(image, dice(5)).tobytes()


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_applies_one_operation_of_its_magnitude(magnitude):
    image = Image.fromarray(smooth())
    possible = {
        operation(image, sign * magnitude / 30).tobytes() for operation in RAND_AUGMENT.values() for sign in (1, -1)
    }
    found = {rand_augment(image, dice(seed), 1, magnitude).tobytes() for seed in range(200)}
    assert found <= possible
    assert len(found) > 0.8 * len(possible)


# --- RandomErase ---------------------------------------------------------------------------------------------------


def test_random_erase_blackens_one_rectangle_of_the_published_shapes():
    pixels = np.random.default_rng(0).integers(1, 256, (100, 160, 3), dtype=np.uint8)
    before, shares, ratios, corners = pixels.copy(), [], [], set()
    for seed in range(400):
        erased = random_erase(pixels, dice(seed))
        gone = (erased == 0).any(axis=2)
        rows, columns = np.flatnonzero(gone.any(axis=1)), np.flatnonzero(gone.any(axis=0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        expected = before.copy()
        expected[box] = 0
        assert np.array_equal(erased, expected)
        shares.append(gone.mean())
        ratios.append(len(rows) / len(columns))
        corners.add((rows[0], columns[0]))
    assert np.array_equal(pixels, before)  # photos in memory must not be changed
    assert 0.018 < min(shares) < 0.03 and 0.3 < max(shares) < 0.335
    assert 0.27 < min(ratios) < 0.35 and 2.6 < max(ratios) < 3.6
    assert np.median(np.log(ratios)) == pytest.approx(0, abs=0.25)  # log-uniform; uniform would give 0.59
    assert len(corners) > 300


def test_random_erase_depends_on_the_generator_only_and_takes_any_photo():
    pixels = noise()
    assert np.array_equal(random_erase(pixels, dice(3)), random_erase(pixels, dice(3)))
    assert random_erase(np.ones((1, 1, 3), np.uint8), dice(0)).all()  # nothing smaller than the photo fits


# --- MixUp and CutMix ----------------------------------------------------------------------------------------------


def batch():
    """Eight flat images; the value of image i is i, so that a mixed pixel tells where it comes from."""
    images = np.repeat(np.arange(8, dtype=np.float32), 3 * 16 * 12).reshape(8, 3, 16, 12)
    return images, np.array([0, 1, 2, 3, 4, 0, 1, 2])


def test_no_mixing_gives_one_hot_labels():
    images, labels = batch()
    mixed, targets = mix_batch(images, labels, 5, dice(0), 0, 0)
    assert np.array_equal(mixed, images)
    assert np.array_equal(targets, np.eye(5)[labels])


def test_mixup_is_a_convex_combination_with_the_predecessor():
    images, labels = batch()
    shares = []
    for seed in range(200):
        mixed, targets = mix_batch(images, labels, 5, dice(seed), 0.2, 0)
        share = targets[1, 1]  # of image 1, whose predecessor has label 0
        assert targets.sum(axis=1) == pytest.approx(1, abs=1e-6)
        assert np.allclose(mixed, share * images + (1 - share) * np.roll(images, 1, axis=0), atol=1e-5)
        assert np.allclose(targets, share * np.eye(5)[labels] + (1 - share) * np.eye(5)[np.roll(labels, 1)], atol=1e-6)
        shares.append(share)
    # Beta(a, a): mean 1/2, variance 1 / (8 a + 4)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / 5.6, rel=0.2)


def test_cutmix_labels_are_the_share_of_pixels():
    images, labels = batch()
    shares = []
    for seed in range(200):
        mixed, targets = mix_batch(images, labels, 5, dice(seed), 0, 1.0)
        own = mixed == images
        assert np.array_equal(own | (mixed == np.roll(images, 1, axis=0)), np.ones_like(own))
        share = own[1].mean()
        assert targets[1, 1] == pytest.approx(share, abs=1e-6)
        assert targets.sum(axis=1) == pytest.approx(1, abs=1e-6)
        rows, columns = np.nonzero(~own[1, 0])
        if len(rows):  # one rectangle, the same for all channels
            assert (~own[1]).sum() == 3 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shares.append(share)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.std(shares) > 0.2


def test_each_batch_is_mixed_in_one_of_the_two_ways():
    images, labels = batch()
    cut = [
        set(np.unique(mix_batch(images, labels, 5, dice(seed), 0.2, 1.0)[0])) <= set(range(8)) for seed in range(100)
    ]
    assert 25 < sum(cut) < 75


# --- order of the photos -------------------------------------------------------------------------------------------


def test_every_photo_comes_once_an_epoch_in_the_size_of_the_epoch():
    batches = SizedBatches(12, 4, [64, 64, 96])
    for epoch, size in enumerate((64, 64, 96, 96)):
        batches.set_epoch(epoch)
        keys = [key for batch in batches for key in batch]
        assert sorted(index for _, index, _ in keys) == list(range(12))
        assert {s for s, _, _ in keys} == {size}
        assert len(list(batches)) == len(batches) == 3


def test_the_rest_of_an_epoch_is_left_out_and_differs_from_epoch_to_epoch():
    batches = SizedBatches(10, 4, [64])
    left_out = []
    for epoch in range(20):
        batches.set_epoch(epoch)
        assert [len(batch) for batch in batches] == [4, 4] and len(batches) == 2
        left_out.append(set(range(10)) - {index for batch in batches for _, index, _ in batch})
    assert set().union(*left_out) == set(range(10))


def test_fewer_photos_than_a_batch_are_one_batch():
    assert [len(batch) for batch in SizedBatches(3, 4, [64])] == [3]


def test_order_and_seeds_depend_on_seed_plus_epoch():
    def keys(seed, epoch):
        batches = SizedBatches(16, 4, [64], seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert keys(0, 3) == keys(0, 3) == keys(3, 0)
    assert keys(0, 3) != keys(0, 4)
    seeds = [{seed for batch in keys(0, epoch) for _, _, seed in batch} for epoch in (3, 4)]
    assert len(seeds[0]) == 16 and not seeds[0] & seeds[1]


@pytest.mark.parametrize(("length", "batches_each"), [(16, 2), (21, 2), (22, 2)])
def test_two_processes_share_an_epoch_without_overlap(length, batches_each):
    seen = []
    for process in range(2):
        shard = BatchSamplerShard(SizedBatches(length, 4, [64]), num_processes=2, process_index=process)
        batches = list(shard)
        assert [len(batch) for batch in batches] == [4] * batches_each == [4] * len(shard)
        seen.append({index for batch in batches for _, index, _ in batch})
    assert len(seen[0]) == len(seen[1]) == 4 * batches_each
    assert not seen[0] & seen[1]
