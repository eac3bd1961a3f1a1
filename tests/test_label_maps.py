"""From classes to labels: by name, WordNet id and number, and in nobody's alphabetical order."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mobilevit_hub.data.label_maps import check_imagenet_labels, has_imagenet_labels, label_indices
from mobilevit_hub.errors import InputError, MobileViTHubWarning
from mobilevit_hub.hub.imagenet import imagenet_labels, imagenet_wnids

LABELS = ["cat", "dog", "crane", "crane", "7", "fox"]


def timm_info(name):
    spec = find_spec("timm")
    if spec is None:
        pytest.skip("needs timm")
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (LABELS, [0, 1, 2, 3, 4, 5]),  # the same list, doubles and all
        (["fox", "cat"], [5, 0]),
        (["7"], [4]),  # a name comes before a number
        (["0", "1", "5"], [0, 1, 5]),
        (["00", "05", "1"], [0, 5, 1]),
    ],
)
def test_names_and_numbers(classes, expected):
    assert label_indices(classes, LABELS, "photos").tolist() == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "unicorn"], "photos: has the class 'unicorn', which the model does not know; it has 6 labels such as 'cat'"),
        (["crane"], "several labels of the model have that name"),
        (["0", "6"], "has the class '0'"),
        (["n01440764"], "has the class 'n01440764'"),  # these labels are not ImageNet's
        (["²"], "has the class"),
    ],
)  # fmt: skip
def test_classes_without_a_label(classes, message):
    with pytest.raises(InputError, match=message) as caught:
        label_indices(classes, LABELS, "photos", field="compare")
    assert caught.value.field == "compare"


def test_folders_of_imagenet_v2_are_numbers_and_not_text():
    folders = sorted(map(str, range(1000)))
    assert folders[1:4] == ["1", "10", "100"]
    found = label_indices(folders, imagenet_labels(), "v2")
    assert found[:5].tolist() == [0, 1, 10, 100, 101]
    assert sorted(found) == list(range(1000))


def test_wordnet_ids():
    classes = ["n15075141", "n01440764", "n02123045"]
    assert label_indices(classes, imagenet_labels(), "val").tolist() == [999, 0, 281]  # toilet tissue, tench, tabby


def test_imagenet_in_other_spellings_is_recognised():
    lemmas = dict(line.split("\t") for line in timm_info("imagenet_synset_to_lemma.txt"))
    assert list(imagenet_wnids()) == timm_info("imagenet_synsets.txt")
    spelled = [lemmas[wnid] for wnid in imagenet_wnids()]
    assert spelled != imagenet_labels() and has_imagenet_labels(spelled)
    assert np.array_equal(label_indices(spelled, imagenet_labels(), "hub"), np.arange(1000))
    assert label_indices(["n01440764"], spelled, "val").tolist() == [0]
    assert not has_imagenet_labels(spelled[::-1])
    assert not has_imagenet_labels(spelled[:999])


def test_a_model_needs_the_labels_of_imagenet():
    check_imagenet_labels(imagenet_labels(), "s", "imagenet-1k")
    with pytest.raises(InputError, match="s: has 6 labels such as 'cat'; imagenet-1k needs a model with the 1000"):
        check_imagenet_labels(LABELS, "s", "imagenet-1k")
    with pytest.raises(InputError, match="has 1000 labels"):
        check_imagenet_labels(imagenet_labels()[::-1], "s", "imagenet-1k")
    with pytest.warns(MobileViTHubWarning, match="have no names"):
        check_imagenet_labels([f"class {i}" for i in range(1000)], "s", "imagenet-1k")
