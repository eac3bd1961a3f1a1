"""Folders of the Keras twin: equal bytes, opened by PyTorch and stock transformers, loaded strictly, published."""

import json

import numpy as np
import pytest
import reference
from hub_server import WRITER, serving
from keras_networks import (
    BACKBONES,
    CLASSIFIERS,
    MODELS,
    QUIET,
    VERSIONS,
    images,
    pytorch_class,
    pytorch_run,
    run,
    same_values,
    tiny,
    tiny_folder,
)

from mobilevit_hub.checkpoints.tensors import read_tensors, to_safetensors
from mobilevit_hub.errors import CheckpointError, ConfigError, MobileViTHubWarning, NotFoundError, SaveError
from mobilevit_hub.hub.presets import list_presets

pytestmark = [pytest.mark.tf, QUIET]


# --------------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------------


@pytest.mark.alone
@VERSIONS
def test_a_folder_brings_back_every_weight(version, tmp_path):
    model = tiny(version)
    model.save_pretrained(tmp_path / "one", card="---\n---\nA card.\n")
    again = CLASSIFIERS[version].from_pretrained(tmp_path / "one")
    assert same_values(model, again)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads((tmp_path / "one" / "config.json").read_text())["architectures"] == [
        CLASSIFIERS[version].__name__.removeprefix("TF")
    ]
    again.save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parity
@VERSIONS
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_both_twins_write_the_same_half_precision_bytes(version, kind, tmp_path):
    import torch

    folder = tiny_folder(tmp_path / "first", version)
    model = CLASSIFIERS[version].from_pretrained(folder, dtype=kind)
    twin = pytorch_class(version).from_pretrained(folder)
    twin.base_model.to(getattr(torch, kind))  # all but the classifier, which stays in float32 in Keras
    model.save_pretrained(tmp_path / "keras")
    twin.save_pretrained(tmp_path / "torch")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "keras" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes(), name


@pytest.mark.parity
@VERSIONS
def test_what_keras_writes_opens_in_pytorch_and_in_stock_transformers_and_back(version, tmp_path):
    import transformers

    pixels = images(2, 64, 128)  # whose maps are even, as stock version 2 needs them
    model = tiny(version, n_attn_blocks=[2, 4, 3])  # which stock version 1 does not ask for
    expected = run(model, pixels)
    model.save_pretrained(tmp_path / "keras")
    twin = pytorch_class(version).from_pretrained(tmp_path / "keras")
    assert reference.figure(pytorch_run(twin, pixels).logits, expected) < 1e-4
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "keras")
    assert reference.figure(pytorch_run(stock, pixels).logits, expected) < 1e-4
    for source, name in ((twin, "torch"), (stock, "stock")):
        source.save_pretrained(tmp_path / name)
        assert same_values(CLASSIFIERS[version].from_pretrained(tmp_path / name), model)


@pytest.mark.alone
@VERSIONS
def test_networks_without_a_classifier_take_the_weights_that_they_need(version, tmp_path):
    folder = tiny_folder(tmp_path / "full", version)
    full = CLASSIFIERS[version].from_pretrained(folder)
    for cls in (MODELS, BACKBONES):
        model = cls[version].from_pretrained(folder)
        stem = f"{'' if cls is MODELS else model.base_model_prefix + '.'}conv_stem.convolution.weight"
        assert stem in model.named_weights()
        model.save_pretrained(tmp_path / cls[version].__name__)
        assert same_values(cls[version].from_pretrained(tmp_path / cls[version].__name__), model)
    with pytest.warns(MobileViTHubWarning, match="classifier for 7 labels is new"):
        again = CLASSIFIERS[version].from_pretrained(tmp_path / MODELS[version].__name__, num_labels=7)
    assert same_values(again.backbone, full.backbone)


@pytest.mark.alone
def test_embedded_checkpoints_open_by_their_alias():
    embedded = [preset for preset in list_presets() if preset.folder and not preset.unavailable]
    for preset in embedded:
        model = CLASSIFIERS[1 if preset.model_type == "mobilevit" else 2].from_pretrained(preset.name)
        assert model.config.num_labels == preset.num_labels


# --------------------------------------------------------------------------------------------------
# Strict loading
# --------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    """Changes the tensors of a folder and forgets the id that ties them to the config."""
    tensors, _ = read_tensors(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").write_bytes(to_safetensors(tensors, {"format": "pt"}))
    return folder


KERNEL = {
    1: "mobilevit.encoder.layer.3.conv_kxk.convolution.weight",
    2: "mobilevitv2.encoder.layer.3.conv_1x1.convolution.weight",
}


@VERSIONS
@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
def test_tensors_that_do_not_fit_are_refused_by_name(version, kind, tmp_path):
    name = KERNEL[version]
    change = {
        "missing": lambda tensors: tensors.pop(name),
        "unexpected": lambda tensors: tensors.update({"head.fc.weight": np.zeros(3, np.float32)}),
        "mismatched": lambda tensors: tensors.update({name: tensors[name][1:]}),
    }[kind]
    folder = rewrite(tiny_folder(tmp_path, version), change)
    culprit = "head.fc.weight" if kind == "unexpected" else name
    with pytest.raises(CheckpointError, match=culprit) as caught:
        CLASSIFIERS[version].from_pretrained(folder)
    assert len(getattr(caught.value, kind)) == 1
    _, report = CLASSIFIERS[version].from_pretrained(folder, strict=False)
    assert len(getattr(report, kind)) == 1


def test_a_transposed_kernel_is_refused(tmp_path):
    name = "mobilevit.encoder.layer.2.transformer.layer.0.intermediate.dense.weight"
    folder = rewrite(tiny_folder(tmp_path, 1), lambda tensors: tensors.update({name: tensors[name].T.copy()}))
    with pytest.raises(CheckpointError, match=r"found \[16, 32\], expected \[32, 16\]"):
        CLASSIFIERS[1].from_pretrained(folder)


def test_the_other_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model_type is 'mobilevit', but TFMobileViTV2ForImageClassification"):
        CLASSIFIERS[2].from_pretrained(tiny_folder(tmp_path, 1))


def test_a_folder_that_is_not_there():
    with pytest.raises(NotFoundError, match="no folder"):
        CLASSIFIERS[1].from_pretrained("./nowhere")


@VERSIONS
def test_a_new_classifier_is_announced_once_and_the_rest_is_loaded(version, tmp_path):
    folder = tiny_folder(tmp_path, version)
    old = CLASSIFIERS[version].from_pretrained(folder)
    with pytest.warns(MobileViTHubWarning) as said:
        model = CLASSIFIERS[version].from_pretrained(folder, num_labels=3)
    assert [str(w.message) for w in said] == [
        "The checkpoint classifies 7 labels; the classifier for 3 labels is new and random. Every other weight was loaded."
    ]
    assert model.output_shape == (None, 3) and same_values(model.backbone, old.backbone)
    with pytest.warns(MobileViTHubWarning, match="new and random"):
        model = CLASSIFIERS[version].from_pretrained(folder, id2label={0: "cat", 1: "dog"})
    assert model.config.id2label == {0: "cat", 1: "dog"} and model.config.label2id == {"cat": 0, "dog": 1}
    assert same_values(CLASSIFIERS[version].from_pretrained(folder, num_labels=7), old)


def test_weights_that_cannot_be_saved(tmp_path):
    model = tiny(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    model.named_weights()["classifier.bias"].variable.assign(np.full(7, np.nan))
    with pytest.raises(CheckpointError, match=r"classifier.bias.* contains NaN"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --------------------------------------------------------------------------------------------------
# Publishing
# --------------------------------------------------------------------------------------------------


def test_publishing_uploads_what_saving_writes(monkeypatch, tmp_path):
    model = tiny(1)
    with serving(monkeypatch, tmp_path / "cache") as hub:
        address = model.push_to_hub("me/new", token=WRITER, private=True, card="# A card\n", commit_message="First")
        pushed = hub.repositories["me/new"]
        assert address == f"{hub.url}/me/new/commit/{pushed.commit}"
        assert pushed.private and [commit["summary"] for commit in hub.commits] == ["First"]
        assert same_values(CLASSIFIERS[1].from_pretrained("me/new"), model)
    model.save_pretrained(tmp_path / "saved", card="# A card\n")
    assert pushed.files == {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
