"""What a conversion says about weights: their channel order, where they come from, what they are of."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference
import test_download
import torch
from hub_server import serving
from huggingface_hub import ModelCard
from networks import MODELS, awake, import_timm, tiny_config
from test_conversion import V2, XXS, assert_same, config_of, halved, load, save, weights
from test_download import certificate, server  # noqa: F401 - fixtures

import mobilevit_hub as mh
from mobilevit_hub.conversion import compare, convert
from mobilevit_hub.conversion.libraries import run_library
from mobilevit_hub.errors import CheckpointError, InputError, MobileViTHubWarning
from mobilevit_hub.hub.find import find_checkpoint
from mobilevit_hub.hub.imagenet import imagenet_labels
from mobilevit_hub.hub.presets import get_preset
from mobilevit_hub.images.processor import processor_for

pytestmark = pytest.mark.torch

# TensorFlow and Keras hand NumPy an array in a way that NumPy is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
EMBEDDED = "mobilevit-xxs-tiny-imagenet"
STEM = {1: "mobilevit.conv_stem.convolution.weight", 2: "mobilevitv2.conv_stem.convolution.weight"}


def tiny_folder(folder, version, order="rgb"):
    """The folder of a small classifier whose processor has a channel order."""
    config = tiny_config(version, n_attn_blocks=[1, 1, 1])
    network = awake(MODELS[config.model_type](config), seed=version)
    network.save_pretrained(folder, processor=processor_for(72, 64, "bilinear", order))
    return folder


def card_of(folder):
    return ModelCard((folder / "README.md").read_text("utf-8"))


def source_in(card):
    """The source as its table names it."""
    (source,) = re.findall(r"^\| source \| (.*) \|$", card.text, flags=re.MULTILINE)
    return source.replace("\\", "")


# --------------------------------------------------------------------------------------------------
# Channel order
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("version", [1, 2])
def test_timm_gets_a_stem_for_rgb_and_gives_back_the_one_that_was(tmp_path, version, order):
    folder = tiny_folder(tmp_path / "folder", version, order)
    convert(folder, tmp_path / "x.safetensors", verify=False)
    stem, theirs = weights(folder)[STEM[version]], load(tmp_path / "x.safetensors")["stem.conv.weight"]
    assert np.array_equal(theirs, stem if order == "rgb" else stem[:, ::-1])
    assert not np.array_equal(stem, stem[:, ::-1])
    convert(tmp_path / "x.safetensors", tmp_path / "back", model=folder, verify=False)
    assert_same(weights(tmp_path / "back"), weights(folder))
    assert mh.image_processor(tmp_path / "back").channel_order == order


@pytest.mark.parametrize("scheme", ["timm", "cvnets"])
def test_version_1_that_takes_rgb_is_reversed_nowhere(tmp_path, scheme):
    """As timm and newer ml-cvnets train it."""
    source = save(tmp_path / "x.pt", reference.state_dict(XXS, scheme))
    convert(source, tmp_path / "out", channel_order="rgb", verify=False)
    stem = load(source)[{"timm": "stem.conv.weight", "cvnets": "conv_1.block.conv.weight"}[scheme]]
    assert np.array_equal(weights(tmp_path / "out")[STEM[1]], stem)
    assert mh.image_processor(tmp_path / "out").channel_order == "rgb"
    convert(tmp_path / "out", tmp_path / "timm.safetensors", verify=False)
    assert np.array_equal(load(tmp_path / "timm.safetensors")["stem.conv.weight"], stem)


def test_timm_computes_the_same_of_a_version_1_that_takes_rgb(tmp_path):
    """From the file that was made for it, and as verification runs it."""
    import_timm()
    convert(EMBEDDED, tmp_path / "x.safetensors", verify=False)
    folder = Path(mh.__file__).parent / "assets" / EMBEDDED
    assert mh.image_processor(folder).channel_order == "rgb"
    ours = run_library("PyTorch", folder, None)
    for source_tensors in (load(tmp_path / "x.safetensors"), None):
        theirs = run_library("timm", folder, source_tensors)
        assert ours.keys() == theirs.keys()
        for place, value in ours.items():
            assert np.abs(theirs[place] - value).max() < 2e-4 * np.abs(value).mean(), place


# --------------------------------------------------------------------------------------------------
# What a card claims
# --------------------------------------------------------------------------------------------------

CLAIMS = ("license", "license_name", "license_link", "base_model", "datasets")
LABELS = [f"kind {i}" for i in range(1000)]


@pytest.mark.parametrize(("scheme", "name"), [("cvnets", "weights.pt"), ("timm", "weights.safetensors")])
def test_nothing_is_claimed_of_an_unknown_file(tmp_path, scheme, name):
    source = save(tmp_path / "mine" / name, reference.state_dict(XXS, scheme))
    found = convert(source, tmp_path / "out", verify=False)
    card = card_of(tmp_path / "out")
    assert not card.data.to_dict().keys() & {*CLAIMS, "model-index"}
    known, *order = found.notes
    assert known.startswith("known as mobilevit-xxs by its shapes alone, so its licence is not")
    assert "1000 labels are named as ImageNet's" in known
    assert [note[:16] for note in order] == [{"cvnets": "taken to take BG", "timm": "the stem is turn"}[scheme]]
    assert all(note in card.text.replace("\\", "") for note in found.notes)


@pytest.mark.parametrize(("name", "options", "claims"), [
    ("mobilevit_xxs.pt", {}, True),
    ("weights.pt", {"model": "mobilevit-xxs"}, True),
    ("mobilevit_xxs.pt", {"labels": LABELS}, False),
    ("weights.pt", {"model": "mobilevit-xxs", "channel_order": "rgb"}, False),
])  # fmt: skip
def test_the_licence_of_a_named_file_and_never_its_score(tmp_path, name, options, claims):
    source = save(tmp_path / name, reference.state_dict(XXS, "cvnets"))
    assert not convert(source, tmp_path / "out", verify=False, **options).notes
    data = card_of(tmp_path / "out").data
    stated = [data.to_dict().get(claim) for claim in CLAIMS]
    license_link = "https://github.com/apple/ml-cvnets/blob/main/LICENSE"
    published = ["other", "apple-sample-code-license", license_link, "apple/mobilevit-xx-small", ["imagenet-1k"]]
    assert stated == (published if claims else [None] * 5)
    assert not data.eval_results


@pytest.mark.parametrize("options", [{}, {"labels": LABELS[:200]}, {"channel_order": "bgr"}])
def test_the_score_of_a_checkpoint_that_is_asked_for_by_name(tmp_path, options):
    convert(EMBEDDED, tmp_path / "out", verify=False, **options)
    card = card_of(tmp_path / "out")
    data = card.data
    assert source_in(card) == EMBEDDED
    scores = [round(100 * score.metric_value, 4) for score in data.eval_results or []]
    assert scores == ([] if options else [get_preset(EMBEDDED).score])
    assert (data.license is None) == bool(options)


def test_another_model_than_the_one_that_is_named(tmp_path):
    with pytest.raises(InputError, match=f"source is {EMBEDDED!r}, but 'mobilevit-xxs' was asked for"):
        convert(EMBEDDED, tmp_path / "out", model="mobilevit-xxs", verify=False)
    assert not list(tmp_path.iterdir())


def test_a_card_names_a_file_without_the_place_where_it_lies(tmp_path, monkeypatch):
    source = tiny_folder(tmp_path / "secret place" / "tiny", 2)
    monkeypatch.chdir(source)
    for name, shown in ((source, "tiny"), (source / "model.safetensors", "model.safetensors"), (".", "tiny")):
        convert(name, tmp_path / "out", verify=False, overwrite=True)
        assert source_in(card_of(tmp_path / "out")) == shown
        assert "secret place" not in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_card_names_the_address_without_its_query(server, monkeypatch, tmp_path):  # noqa: F811
    folder = tiny_folder(tmp_path / "tiny", 2)
    monkeypatch.setattr(test_download, "CONTENT", (folder / "model.safetensors").read_bytes())
    url = f"{server.url}/file/a/x.safetensors"
    convert(f"{url}?token=secret", tmp_path / "out", model=folder, verify=False)
    assert source_in(card_of(tmp_path / "out")) == url


def test_a_card_names_the_whole_id_of_a_repository(monkeypatch, tmp_path):
    folder = tiny_folder(tmp_path / "tiny", 2)
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add("me/new", {path.name: path.read_bytes() for path in folder.iterdir()})
        convert("me/new", tmp_path / "out", verify=False)
    assert source_in(card_of(tmp_path / "out")) == "me/new"


# --------------------------------------------------------------------------------------------------
# What the config says
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "change", "dtype", "architecture"), [
    (XXS, halved, "float16", "MobileViTForImageClassification"),
    (V2, dict, "float32", "MobileViTV2ForImageClassification"),
])  # fmt: skip
def test_the_config_has_the_class_and_the_number_type(tmp_path, variant, change, dtype, architecture):
    source = save(tmp_path / "x.safetensors", change(reference.state_dict(variant, "timm")))
    convert(source, tmp_path / "out", verify=False)
    config = config_of(tmp_path / "out")
    assert (config["architectures"], config["dtype"]) == ([architecture], dtype)


@pytest.mark.parametrize(("variant", "scheme", "architecture"), [
    (XXS, "timm", "MobileViTModel"), (V2, "cvnets", "MobileViTV2Model"),
])  # fmt: skip
def test_a_file_without_a_classifier(tmp_path, variant, scheme, architecture):
    def headless(tensors):
        return {name: t for name, t in tensors.items() if not name.startswith(("classifier.", "head.fc."))}

    source = save(tmp_path / "x.bin", headless(reference.state_dict(variant, scheme)))
    found = convert(source, tmp_path / "out", verify=False)
    assert found.labels == 0 and not any("ImageNet" in note for note in found.notes)
    config = config_of(tmp_path / "out")
    assert config["architectures"] == [architecture]
    assert not set(imagenet_labels()) & set(config["id2label"].values())
    card = card_of(tmp_path / "out")
    assert 'task="features"' in card.text and card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license is None
    expected = headless(reference.state_dict(variant))
    assert_same(weights(tmp_path / "out"), expected)
    opened = mh.from_pretrained(tmp_path / "out", task="features").state_dict()
    prefix = config["model_type"] + "."
    assert {prefix + name for name in opened} == expected.keys()
    assert all(torch.equal(tensor, torch.from_numpy(expected[prefix + name])) for name, tensor in opened.items())


@QUIET
@pytest.mark.parity
@pytest.mark.parametrize(("ending", "labels"), [(".keras", 0), (".weights.h5", 7)])
def test_a_network_without_a_classifier_goes_to_keras_and_back(tmp_path, ending, labels):
    """Also where its config still has the labels of the classifier that it had."""
    base = mh.from_pretrained(tiny_folder(tmp_path / "tiny", 1), task="features")
    base.config.num_labels = labels
    base.save_pretrained(tmp_path / "base", processor=mh.image_processor(tmp_path / "tiny"))
    folder, file = tmp_path / "folder", tmp_path / f"x{ending}"
    convert(tmp_path / "base", folder, verify=False)
    convert(folder, file, verify=False)
    found = convert(file, tmp_path / "back", model=folder, verify=False)
    assert (found.kind, found.labels) == ("Keras", 0)
    assert_same(weights(tmp_path / "back"), weights(folder))
    assert config_of(tmp_path / "back") == config_of(folder)


@QUIET
@pytest.mark.parity
def test_a_folder_named_like_a_checkpoint_is_meant_by_its_path_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "weights.pt", reference.state_dict(XXS, "cvnets"))
    convert(source, "mobilevit-xxs-tiny-imagenet", verify=False)
    with pytest.warns(MobileViTHubWarning, match="write './mobilevit-xxs-tiny-imagenet'"):
        assert find_checkpoint("mobilevit-xxs-tiny-imagenet").preset is not None
    assert mh.from_pretrained("./mobilevit-xxs-tiny-imagenet").config.num_labels == 1000
    report = compare("./mobilevit-xxs-tiny-imagenet", own_processes=False)
    assert report.passed, report.lines()
    Path("mobilevitv2-1.0").mkdir()
    with pytest.raises(CheckpointError, match=r"holds a classifier \(mobilevit-xxs, .*'mobilevitv2-1.0' was asked for"):
        convert(source, "out", model="mobilevitv2-1.0", verify=False)


def test_files_of_another_checkpoint_that_stay_are_named(tmp_path):
    source = save(tmp_path / "mobilevit_xxs.pt", reference.state_dict(XXS, "cvnets"))
    convert(source, tmp_path / "out", verify=False)
    (tmp_path / "out" / "training_log.json").write_text("{}")
    found = convert(source, tmp_path / "out", verify=False, overwrite=True)
    assert found.notes == ["other files stay in out: training_log.json"]
    assert (tmp_path / "out" / "training_log.json").exists()
