"""The checkpoint inside the package: complete, small, and right about real photos, without a network."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import mobilevit_hub as mh
from mobilevit_hub.hub.presets import get_preset

pytestmark = pytest.mark.torch

NAME = "mobilevit-xxs-tiny-imagenet"
PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
# What a person would accept among the classes of Tiny ImageNet.
RIGHT = {
    "chelsea_cat.jpg": ("tabby", "egyptian cat"),
    "espresso.jpg": ("espresso",),
    "pizza.jpg": ("pizza",),
    "school_bus.jpg": ("school bus",),
}


@pytest.fixture(scope="module")
def folder():
    return Path(mh.__file__).parent / get_preset(NAME).folder


def test_folder_is_complete_and_small(folder):
    assert {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"} <= {
        file.name for file in folder.iterdir()
    }
    assert (folder / "model.safetensors").stat().st_size <= 2_700_000
    with safe_open(folder / "model.safetensors", "np") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys() if "num_batches" not in name}  # noqa: SIM118
    assert kinds == {"F16"}


@pytest.mark.alone
def test_alias_loads_as_float32_with_the_names_of_200_classes():
    model = mh.from_pretrained(NAME)
    assert model.num_parameters() == get_preset(NAME).params
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    labels = list(model.config.id2label.values())
    assert len(set(labels)) == 200
    assert not any(label.startswith("LABEL_") for label in labels)


def test_record_and_files_agree(folder):
    preset, processor = get_preset(NAME), mh.image_processor(NAME)
    config = json.loads((folder / "config.json").read_text())
    assert config["image_size"] == preset.resolution == preset.crop
    assert dict(processor.size) == {"shortest_edge": preset.resize}
    assert processor.crop_size["height"] == preset.crop
    assert (processor.channel_order, processor.interpolation) == (preset.channel_order, preset.interpolation)


def test_card_states_score_and_count(folder):
    card = (folder / "README.md").read_text("utf-8")
    top1 = float(re.search(r"\| top-1 \| ([\d.]+) %", card)[1])
    assert top1 >= 28
    assert get_preset(NAME).score == pytest.approx(top1, abs=0.06)
    assert re.search(r"\| measured on \| 10,000 validation photos \|", card)


@pytest.mark.alone
def test_real_photos_are_recognised():
    results = mh.predict(sorted(PHOTOS.glob("*.jpg")), NAME, top_k=3)
    assert len(results) == len(RIGHT)
    right = []
    for result in results:
        labels = [prediction["label"].lower() for prediction in result["predictions"]]
        assert np.isfinite([prediction["score"] for prediction in result["predictions"]]).all()
        if any(label.startswith(RIGHT[Path(result["path"]).name]) for label in labels):
            right.append(result["path"])
    assert right
