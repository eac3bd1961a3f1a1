"""Data sets from folders and parquet."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from pictures import encode, noise
from PIL import Image

from mobilevit_hub.data.opening import open_images
from mobilevit_hub.errors import ImageError, InputError, NotFoundError

CLASSES = ("zebra", "apple", "test tube")


def photo(i):
    return np.roll(noise(20 + i, 30), 7 * i, axis=0)


def save_folder(folder, classes=CLASSES, per_class=2):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            (folder / name / f"{i}.png").write_bytes(encode(photo(per_class * label + i), "PNG"))
    return folder


def save_parquet(file, labels=(0, 2, 1), names=("b", "a", "c"), **columns):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": encode(photo(i), "PNG"), "path": None} for i in range(len(labels))], "label": labels}
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({**rows, **columns}, features=features).to_parquet(str(file))
    return file


def same_pixels(image, expected):
    return image.mode == "RGB" and np.array_equal(np.asarray(image), expected)


# --- opening -------------------------------------------------------------------------------------------------------


def test_holding_out_divides_each_class(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 20), ("dog", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name / f"{i:02}.png")
    images = open_images(tmp_path)
    train, validation = images.hold_out(0.2, seed=1)
    assert np.bincount(train.labels).tolist() == [16, 4] and np.bincount(validation.labels).tolist() == [4, 1]
    everything = sorted(np.asarray(part[i]).tobytes() for part in (train, validation) for i in range(len(part)))
    assert everything == sorted(np.asarray(images[i]).tobytes() for i in range(25))  # each photo in one part
    again = images.hold_out(0.2, seed=1)[1]
    assert [np.asarray(again[i]).tobytes() for i in range(5)] == [np.asarray(validation[i]).tobytes() for i in range(5)]
    (tmp_path / "fox").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "fox" / "0.png")
    with pytest.raises(InputError, match="class 'fox' has one photo"):
        open_images(tmp_path).hold_out()


@pytest.mark.parametrize("prefix", ["", "imagefolder:"])
def test_folder_of_classes_gives_the_saved_photos_with_sorted_labels(tmp_path, prefix):
    images = open_images(f"{prefix}{save_folder(tmp_path / 'photos')}")
    assert images.label_names == ["apple", "test tube", "zebra"]  # "test tube" is a class, not a split
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert not images.is_split
    order = [CLASSES.index(images.label_names[label]) for label in images.labels]
    assert all(same_pixels(images[i], photo(2 * order[i] + i % 2)) for i in range(len(images)))


@pytest.mark.parametrize("validation", ["validation", "val", "test"])
def test_folder_with_splits_opens_each(tmp_path, validation):
    save_folder(tmp_path / "train", per_class=2)
    save_folder(tmp_path / validation, per_class=1)
    train, held_out = open_images(tmp_path), open_images(tmp_path, "validation")
    assert (len(train), len(held_out)) == (6, 3)
    assert train.is_split and held_out.is_split
    assert train.label_names == held_out.label_names


def test_validation_is_preferred_to_test(tmp_path):
    for i, name in enumerate(("train", "test", "validation")):
        save_parquet(tmp_path / f"{name}-0.parquet", labels=[0] * (i + 1))
    assert [len(open_images(tmp_path, split)) for split in ("train", "validation")] == [1, 3]


def test_parquet_file_keeps_names_labels_and_photos(tmp_path):
    file = save_parquet(tmp_path / "anything.parquet")
    for source in (file, str(file), f"parquet:{file}", tmp_path):
        images = open_images(source)
        assert images.label_names == ["b", "a", "c"]  # as the file numbers them
        assert images.labels.tolist() == [0, 2, 1]
        assert not images.is_split
        assert all(same_pixels(images[i], photo(i)) for i in range(3))


def test_parquet_folder_joins_the_files_of_a_split(tmp_path):
    for i in range(2):
        save_parquet(tmp_path / "data" / f"train-0000{i}-of-00002.parquet", labels=[i, i])
    save_parquet(tmp_path / "data" / "val.parquet", labels=[2])
    assert open_images(tmp_path).labels.tolist() == [0, 0, 1, 1]
    assert open_images(tmp_path, "validation").labels.tolist() == [2]
    assert open_images(tmp_path).is_split


def test_photos_kept_in_memory_equal_those_read_directly(tmp_path):
    images = open_images(save_folder(tmp_path / "photos"))
    direct = [np.asarray(images[i]) for i in range(len(images))]
    assert images.keep_in_memory(progress=False)
    (tmp_path / "photos" / "apple" / "0.png").unlink()
    assert all(same_pixels(images[i], direct[i]) for i in range(len(images)))


def test_photos_that_do_not_fit_into_memory_are_read_directly(tmp_path, monkeypatch):
    images = open_images(save_folder(tmp_path / "photos"))
    monkeypatch.setattr("mobilevit_hub.data.labelled.CACHE_BYTES", 6 * 20 * 30 * 3)
    assert not images.keep_in_memory(progress=False)
    assert same_pixels(images[0], photo(2))


def no_images(folder):
    save_folder(folder)
    for file in folder.rglob("*.png"):
        file.unlink()


def no_label_column(folder):
    features = Features({"image": ImageFeature(), "text": Value("string")})
    Dataset.from_dict({"image": [None], "text": ["a"]}, features=features).to_parquet(str(folder / "train.parquet"))


@pytest.mark.parametrize(
    ("make", "source", "split", "error", "message"),
    [
        (lambda f: None, "missing/", "train", NotFoundError, "no such file or folder"),
        (lambda f: None, "imagefolder:missing", "train", NotFoundError, "no such file or folder"),
        (lambda f: None, "", "train", InputError, "holds no sub-folders"),
        (lambda f: (f / "x.txt").write_text("x"), "imagefolder:{}/x.txt", "train", InputError, "one sub-folder per"),
        (lambda f: save_folder(f / "train"), "", "validation", NotFoundError, "has no 'validation' folder"),
        (lambda f: save_folder(f / "val"), "", "train", NotFoundError, "has no 'train' folder"),
        (no_images, "", "train", InputError, "holds no sub-folders of photos"),
        (lambda f: save_parquet(f / "train.parquet"), "", "validation", NotFoundError, "starts with validation or val"),
        (no_label_column, "", "train", InputError, r"has the columns \['image', 'text'\]; expected an image column"),
        (lambda f: (f / "a.parquet").write_bytes(b"PAR1"), "", "train", InputError, "cannot be read as parquet"),
        (lambda f: save_parquet(f / "a.parquet", [0, -1]), "", "train", InputError, "1 photos without a label"),
        (lambda f: save_parquet(f / "a.parquet", [None]), "", "train", InputError, "1 photos without a label"),
        (lambda f: save_parquet(f / "a.parquet", []), "", "train", InputError, "cannot be read as parquet"),
    ],
)
def test_unusable_source_says_what_is_wrong(tmp_path, make, source, split, error, message):
    make(tmp_path)
    source = source.format(tmp_path) if "{}" in source else source.replace("missing", f"{tmp_path}/missing")
    with pytest.raises(error, match=message) as caught:
        open_images(source or tmp_path, split)
    assert "\n" not in str(caught.value)


def test_unknown_hub_id_is_not_found_without_network(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match="'nobody/nothing'.*neither a folder here nor reachable"):
        open_images("nobody/nothing")


def test_broken_photo_is_named(tmp_path):
    save_folder(tmp_path / "photos")
    (tmp_path / "photos" / "apple" / "1.png").write_bytes(b"not a photo")
    images = open_images(tmp_path / "photos")
    with pytest.raises(ImageError, match="photo 1: .*1.png"):
        images.keep_in_memory(progress=False)
