"""`image_dataset`: the photos that Keras trains and measures on are those of the PyTorch command."""

import shutil

import numpy as np
import pytest
from keras_networks import QUIET
from shapes import CLASSES, TRAIN_COUNT, VALIDATION_COUNT, save_shapes

from mobilevit_hub.data.opening import open_images
from mobilevit_hub.errors import ConfigError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.recipes.recipe import get_recipe
from mobilevit_hub.tf import image_dataset

pytestmark = [pytest.mark.tf, QUIET]

PROCESSOR = processor_for(36, 32, "bilinear", "rgb")
PLAIN = get_recipe(crop_area=1.0, flip=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


def arrays(dataset):
    """All batches of one pass, joined."""
    pixels, labels = zip(*((x.numpy(), y.numpy()) for x, y in dataset), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


@pytest.mark.alone
def test_validation_photos_are_what_the_processor_makes(photos):
    images = open_images(photos, "validation")
    expected = PROCESSOR([images[i] for i in range(len(images))], data_format="channels_last", return_tensors="np")
    dataset = image_dataset(photos, PROCESSOR, split="validation", batch_size=5)
    assert len(dataset) == 3 and dataset.class_names == list(CLASSES)
    assert dataset.element_spec[0].shape.as_list() == [None, 32, 32, 3]
    pixels, labels = arrays(dataset)
    np.testing.assert_array_equal(pixels, expected["pixel_values"])
    np.testing.assert_array_equal(labels, images.labels)


@pytest.mark.parity
@pytest.mark.parametrize("changes", [{}, {"mixup": 0.2, "cutmix": 1.0, "rand_augment": 2, "random_erase": 0.5}])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_those_of_the_pytorch_command(photos, tmp_path, changes, workers):
    import transformers
    from networks import tiny

    from mobilevit_hub.pt.training.trainer import RecipeTrainer, TrainingImages

    recipe, images = get_recipe(batch_size=16, epochs=2, image_size=48, seed=3, **changes), open_images(photos)
    processor = processor_for(54, 48, "bicubic", "bgr")
    trainer = RecipeTrainer(
        recipe, 3, model=tiny(1, num_labels=3),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=16,
            remove_unused_columns=False,
        ),
        train_dataset=TrainingImages(images, recipe, "bgr", "bicubic"),
    )  # fmt: skip
    dataset = image_dataset(images, processor, batch_size=16, recipe=recipe, workers=workers)
    loader = trainer.get_train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        pairs = list(zip(loader, dataset, strict=True))
        assert len(pairs) == TRAIN_COUNT // 16
        for batch, (pixels, labels) in pairs:
            np.testing.assert_allclose(
                pixels.numpy(), batch["pixel_values"].permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-6
            )
            np.testing.assert_array_equal(labels.numpy(), batch["labels"].numpy())


def test_each_pass_has_another_order_and_the_same_seed_repeats_it(photos):
    dataset, again, other = (
        image_dataset(photos, PROCESSOR, batch_size=16, recipe=get_recipe(seed=seed)) for seed in (1, 1, 2)
    )
    first, second = arrays(dataset), arrays(dataset)
    assert not np.array_equal(first[1], second[1])
    assert sorted(first[1]) == sorted(second[1]) == sorted(open_images(photos).labels)
    np.testing.assert_array_equal(arrays(again)[0], first[0])
    assert not np.array_equal(arrays(other)[0], first[0])
    later = image_dataset(photos, PROCESSOR, batch_size=16, recipe=get_recipe(seed=1), epoch=1)
    np.testing.assert_array_equal(arrays(later)[0], second[0])


@pytest.mark.parametrize(("order", "channel"), [("rgb", 0), ("bgr", 2)])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_photos_have_the_channel_order_of_the_checkpoint(photos, order, channel, split):
    pixels, labels = arrays(image_dataset(photos, processor_for(36, 32, "bilinear", order), split=split, recipe=PLAIN))
    red = pixels[labels == CLASSES.index("circle")].mean(axis=(0, 1, 2))
    assert red.argmax() == channel


def test_labels_as_probabilities(photos):
    numbers = arrays(image_dataset(photos, PROCESSOR, split="validation"))[1]
    shares = arrays(image_dataset(photos, PROCESSOR, split="validation", one_hot=True))[1]
    np.testing.assert_array_equal(shares, np.eye(3)[numbers])
    mixed = arrays(image_dataset(photos, PROCESSOR, recipe=get_recipe(mixup=0.4)))[1]
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    assert ((mixed > 0.01) & (mixed < 0.99)).any()


def test_undivided_photos_are_divided_without_overlap(photos):
    train, _ = arrays(image_dataset(photos / "train", PROCESSOR, recipe=PLAIN, batch_size=1))
    with pytest.warns(MobileViTHubWarning, match="6 of its photos, 10% of each class, are held out"):
        validation, labels = arrays(image_dataset(photos / "train", processor_for(32, 32, "bilinear", "rgb"),
                                                  split="validation", batch_size=1))  # fmt: skip
    # Crop 1.0 keeps all of a square photo, so that equal photos would be equal arrays.
    images = open_images(photos / "train")
    whole = processor_for(32, 32, "bilinear", "rgb")
    everything = whole([images[i] for i in range(len(images))], data_format="channels_last", return_tensors="np")
    distance = [np.abs(everything["pixel_values"] - photo).mean(axis=(1, 2, 3)).argmin() for photo in validation]
    assert len(set(distance)) == len(validation) == 6 and len(train) == TRAIN_COUNT - 6
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]


def test_class_weights_balance_the_classes(photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "data")
    for file in sorted((tmp_path / "data" / "circle").iterdir())[4:]:
        file.unlink()
    images = open_images(tmp_path / "data")
    weights = image_dataset(images, PROCESSOR).class_weight
    counts = np.bincount(images.labels)
    assert counts.tolist() == [4, 16, 16]
    np.testing.assert_allclose([weights[i] * counts[i] for i in range(3)], len(images) / 3)


def test_a_datasets_data_set_and_a_checkpoint_by_name(photos):
    import datasets

    table = datasets.Dataset.from_dict(
        {"image": [str(f) for f in sorted((photos / "validation").rglob("*.png"))], "label": [0, 1, 2] * 4},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}),
    )
    dataset = image_dataset(table, "mobilevit-xxs-tiny-imagenet", split="validation")
    pixels, labels = arrays(dataset)
    assert pixels.shape == (VALIDATION_COUNT, 96, 96, 3) and pixels.min() >= 0 and 0.5 < pixels.max() <= 1
    assert labels.tolist() == [0, 1, 2] * 4 and dataset.class_names == ["a", "b", "c"]


def test_wrong_arguments(photos):
    with pytest.raises(InputError, match="split is 'test'; expected 'train' or 'validation'"):
        image_dataset(photos, PROCESSOR, split="test")
    with pytest.raises(ConfigError, match="batch_size"):
        image_dataset(photos, PROCESSOR, batch_size=0)
    with pytest.raises(ConfigError, match="image_size"):
        image_dataset(photos, PROCESSOR, image_size=0)
    with pytest.raises(NotFoundError, match="No data set at './nowhere'"):
        image_dataset("./nowhere", PROCESSOR)
    with pytest.raises(NotFoundError, match="mobilevit-xxxs"):
        image_dataset(photos, "mobilevit-xxxs")
