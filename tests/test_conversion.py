"""Conversion of weights from every kind of source: to the bit, in the right channel order, back again, and verified."""

import hashlib
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference
import test_download
import torch
from hub_server import serving
from huggingface_hub import ModelCard
from networks import MODELS, awake, tiny_config, to_torch
from safetensors.numpy import load_file, save_file
from test_download import certificate, server  # noqa: F401 - fixtures

import mobilevit_hub as mh
from mobilevit_hub.cli.main import main
from mobilevit_hub.conversion import convert
from mobilevit_hub.errors import CheckpointError, InputError, OfflineError, SaveError
from mobilevit_hub.hub.imagenet import imagenet_labels
from mobilevit_hub.hub.presets import get_preset
from mobilevit_hub.images.processor import processor_for

pytestmark = pytest.mark.torch

# TensorFlow and Keras hand NumPy an array in a way that NumPy is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
VERSIONS = pytest.mark.parametrize("version", [1, 2])
XXS, V2 = "mobilevit_xxs", "mobilevitv2_050"
STEM = {XXS: "mobilevit.conv_stem.convolution.weight", V2: "mobilevitv2.conv_stem.convolution.weight"}
EMBEDDED = "mobilevit-xxs-tiny-imagenet"


def save(path, tensors):
    """A weights file as others write it; what kind, its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(to_torch(tensors), path)
    return path


def load(path):
    """The tensors of a weights file, read without this package."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def assert_same(got, expected):
    """The same names, types and shapes, and every bit of every value."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].tobytes() == tensor.tobytes(), name


def weights(folder):
    return load(folder / "model.safetensors")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@torch.no_grad()
def logits(folder, pixels):
    return mh.from_pretrained(folder)(torch.from_numpy(pixels)).logits.numpy()


@pytest.fixture
def place():
    """A folder that goes when its test ends: pytest keeps its own, and these weights are large."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def apple(tmp_path_factory):
    """Apple's files of the two smallest networks, by variant."""
    folder = tmp_path_factory.mktemp("apple")
    names = {XXS: "mobilevit_xxs.pt", V2: "mobilevitv2-0.5.pt"}
    return {v: save(folder / name, reference.state_dict(v, "cvnets")) for v, name in names.items()}


@pytest.fixture
def tiny_folder(tmp_path):
    """Writes the folder of a small network of a version, with labels and a processor of its own."""

    def write(version, name="tiny", **fields):
        shared = {"id2label": {0: "cat", 1: "dög", 2: "水"}, "num_labels": None, "n_attn_blocks": [1, 1, 1]}
        config = tiny_config(version, **shared | fields)
        network = awake(MODELS[config.model_type](config), seed=version)
        network.save_pretrained(tmp_path / name, processor=processor_for(72, 64, "bilinear", "rgb"))
        return tmp_path / name

    return write


# --------------------------------------------------------------------------------------------------
# Every source, there and back
# --------------------------------------------------------------------------------------------------

# As the Hub has them; those of old have other keys, and a plain number for the short side.
PROCESSOR = {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}, "resample": 2,
             "do_flip_channel_order": True, "image_processor_type": "MobileViTImageProcessor"}  # fmt: skip
OLD_PROCESSOR = {"size": 288, "crop_size": 256, "resample": 2, "do_flip_channels": True,
                 "feature_extractor_type": "MobileViTFeatureExtractor"}  # fmt: skip


def published_folder(folder, variant, file, processor):
    """A folder as the Hub has it for transformers."""
    save(folder / file, reference.state_dict(variant))
    (folder / "config.json").write_text(json.dumps(reference.config(variant)))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


SOURCES = {
    "cvnets": lambda folder, v: save(folder / "weights.pt", reference.state_dict(v, "cvnets")),
    "timm, safetensors": lambda folder, v: save(folder / "weights.safetensors", reference.state_dict(v, "timm")),
    "timm, pickled": lambda folder, v: save(folder / "weights.bin", reference.state_dict(v, "timm")),
    "transformers": lambda folder, v: published_folder(folder, v, "model.safetensors", PROCESSOR),
    "transformers of old": lambda folder, v: published_folder(folder, v, "pytorch_model.bin", OLD_PROCESSOR),
}


LARGE = ("mobilevitv2_125", "mobilevitv2_150", "mobilevitv2_175", "mobilevitv2_200")
EVERY = [
    pytest.param(variant, kind, marks=[pytest.mark.slow] if variant in LARGE and kind != "cvnets" else [])
    for variant in reference.VARIANTS
    for kind in SOURCES
]


@pytest.mark.parametrize(("variant", "kind"), EVERY)
def test_every_published_network_from_every_source_and_back(place, variant, kind):
    source = SOURCES[kind](place / "source", variant)
    found = convert(source, place / "out", verify=False)
    assert_same(weights(place / "out"), reference.state_dict(variant))
    assert (found.labels, found.target, found.parity) == (1000, "folder", None)
    assert found.network == get_preset(variant).name
    if source.is_file():
        back = place / f"back{source.suffix}"
        convert(place / "out", back, verify=False)
        assert_same(load(back), load(source))
        if back.suffix != ".safetensors":  # whose own order is another
            assert list(load(back)) == list(load(source))
        assert found.tensors == len(load(source))
    else:
        processor = json.loads((place / "out" / "preprocessor_config.json").read_text())
        assert {name: processor[name] for name in PROCESSOR} == PROCESSOR and "do_flip_channels" not in processor


@pytest.mark.tf
@pytest.mark.parametrize("variant", [v for v in reference.VARIANTS if "v2" not in v])
def test_the_old_tensorflow_file(place, variant):
    """It lacks the batch counters; there was none of version 2."""
    from test_keras_legacy import write_h5

    folder = published_folder(place / "source", variant, "model.safetensors", PROCESSOR)
    (folder / "model.safetensors").unlink()
    write_h5(folder / "tf_model.h5", reference.state_dict(variant))
    expected = reference.state_dict(variant)
    expected |= {name: np.array(0) for name in expected if name.endswith("num_batches_tracked")}
    for name, source in (("folder", folder), ("file", folder / "tf_model.h5")):
        found = convert(source, place / name, verify=False)
        assert_same(weights(place / name), expected)
        assert found.kind == "transformers 4 for TensorFlow"
        assert any("batch counters" in note and "are 0" in note for note in found.notes)


def test_the_target_may_be_another_scheme_than_the_ending_says(apple, tmp_path):
    convert(apple[XXS], tmp_path / "x.pt", to="timm", verify=False)
    assert_same(load(tmp_path / "x.pt"), reference.state_dict(XXS, "timm"))
    convert(tmp_path / "x.pt", tmp_path / "x.safetensors", to="cvnets", verify=False)
    assert_same(load(tmp_path / "x.safetensors"), reference.state_dict(XXS, "cvnets"))
    convert(apple[XXS], tmp_path / "folder.with.dots", to="folder", verify=False)
    assert_same(weights(tmp_path / "folder.with.dots"), reference.state_dict(XXS))


@VERSIONS
def test_a_network_without_a_classifier(tiny_folder, tmp_path, version):
    folder = tiny_folder(version)
    base = mh.from_pretrained(folder, task="features")
    base.save_pretrained(tmp_path / "base", processor=mh.image_processor(folder))
    found = convert(tmp_path / "base", tmp_path / "out", verify=False)
    assert found.labels == 0
    again = mh.from_pretrained(tmp_path / "out", task="features").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in base.state_dict().items())
    convert(tmp_path / "out", tmp_path / "x.pt", verify=False)
    assert not any("classifier" in name for name in load(tmp_path / "x.pt"))
    convert(tmp_path / "x.pt", tmp_path / "back", model=tmp_path / "base", verify=False)
    assert_same(weights(tmp_path / "back"), weights(tmp_path / "out"))


# --------------------------------------------------------------------------------------------------
# What the result computes
# --------------------------------------------------------------------------------------------------


def check_logits(folder, variant, case_id):
    """Compares both twins with Apple's outputs."""
    from keras_networks import channels_last, run

    case = reference.load_case(variant, case_id)
    case.check({"logits": logits(folder, case.input())})
    case.check({"logits": run(mh.from_pretrained(folder, framework="tf"), channels_last(case.input()))})


@QUIET
@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cvnets", "timm, safetensors", "transformers"])
@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_every_published_network_computes_what_apple_s_does(place, variant, kind):
    source = SOURCES[kind](place / "source", variant)
    assert main(["convert", str(source), str(place / "out")]) == 0
    for _, case_id in reference.case_ids("logits", (variant,)):
        check_logits(place / "out", variant, case_id)


@QUIET
@pytest.mark.parity
def test_what_fails_its_check_is_not_written(tiny_folder, tmp_path, monkeypatch, capsys):
    """Finite weights of which every network makes infinite logits."""
    module = sys.modules[convert.__module__]
    monkeypatch.setattr(module, "compare", partial(module.compare, own_processes=False))  # which take seconds to start
    folder = tiny_folder(1)
    broken = weights(folder)
    for name in ("classifier.weight", "classifier.bias"):
        broken[name][:] = np.finfo(np.float32).max
    save(folder / "model.safetensors", broken)
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    printed, said = capsys.readouterr()
    assert "stage5" in printed and "inf FAIL" in printed and "wrote" not in printed
    assert said.startswith(f"mobilevit-hub: error: {folder}: the result was not written, because it failed its check")
    assert "values that are not finite (logits, " in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


# --------------------------------------------------------------------------------------------------
# Channel order
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [XXS, V2])
def test_the_stem_takes_the_channels_in_apple_s_order(apple, tmp_path, variant):
    """timm's version 1 takes R, G, B; Apple's B, G, R. Version 2 takes R, G, B in both."""
    timm = save(tmp_path / f"{variant}.safetensors", reference.state_dict(variant, "timm"))
    kernels = {kind: load(file) for kind, file in (("timm", timm), ("apple", apple[variant]))}
    kernels = {"timm": kernels["timm"]["stem.conv.weight"], "apple": kernels["apple"]["conv_1.block.conv.weight"]}
    assert np.array_equal(kernels["timm"], kernels["apple"]) == (variant == V2)
    convert(timm, tmp_path / "timm", verify=False)
    case = reference.load_case(variant, "logits_192x192")
    case.check({"logits": logits(tmp_path / "timm", case.input())})
    swapped = weights(tmp_path / "timm")
    swapped[STEM[variant]] = np.ascontiguousarray(swapped[STEM[variant]][:, ::-1])
    save(tmp_path / "timm" / "model.safetensors", swapped)
    ((figure, tolerance),) = case.compare({"logits": logits(tmp_path / "timm", case.input())}).values()
    assert figure > 100 * tolerance


@pytest.mark.parametrize(("variant", "order"), [(XXS, "bgr"), (V2, "rgb")])
def test_both_sources_of_a_network_give_the_same_folder(apple, tmp_path, variant, order):
    timm = save(tmp_path / f"{variant}.safetensors", reference.state_dict(variant, "timm"))
    convert(timm, tmp_path / "timm", verify=False)
    convert(apple[variant], tmp_path / "apple", verify=False, model=variant)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "timm" / name).read_bytes() == (tmp_path / "apple" / name).read_bytes()
    processor = mh.image_processor(tmp_path / "timm")
    assert processor.channel_order == order
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[..., 0] = 255
    red = processor(picture, return_tensors="np")["pixel_values"][0].mean(axis=(1, 2))
    assert list(red) == ([0, 0, 1] if order == "bgr" else [1, 0, 0])


@pytest.mark.parametrize(("variant", "order"), [(XXS, "rgb"), (V2, "bgr")])
def test_weights_of_another_channel_order(apple, tmp_path, variant, order):
    convert(apple[variant], tmp_path / "out", channel_order=order, verify=False)
    assert mh.image_processor(tmp_path / "out").channel_order == order
    assert_same(weights(tmp_path / "out"), reference.state_dict(variant))  # it is the input that is another
    with pytest.raises(InputError, match="channel_order is 'BGR'; expected 'bgr' or 'rgb'"):
        convert(apple[variant], tmp_path / "other", channel_order="BGR", verify=False)


# --------------------------------------------------------------------------------------------------
# Keras
# --------------------------------------------------------------------------------------------------


@QUIET
@pytest.mark.parity
@pytest.mark.parametrize(("version", "ending"), [
    (1, ".keras"),
    (2, ".weights.h5"),
    pytest.param(1, ".weights.h5", marks=pytest.mark.slow),
    pytest.param(2, ".keras", marks=pytest.mark.slow),
])  # fmt: skip
def test_keras_files_bring_back_weights_config_and_labels(tiny_folder, tmp_path, version, ending):
    folder, file = tiny_folder(version, hidden_act="relu"), tmp_path / f"my model{ending}"
    assert convert(folder, file, verify=False).target == "keras"
    found = convert(file, tmp_path / "back", model=folder, verify=False)
    assert found.kind == "Keras" and found.labels == 3
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


ENDINGS = pytest.mark.parametrize("ending", [".keras", pytest.param(".weights.h5", marks=pytest.mark.slow)])


@QUIET
@pytest.mark.parity
@ENDINGS
def test_keras_files_of_the_embedded_network(tmp_path, ending):
    """Half precision becomes single, which holds the same values; the shapes tell the network's size."""
    file = tmp_path / f"x{ending}"
    convert(EMBEDDED, file, verify=False)
    found = convert(file, tmp_path / "back", verify=False)
    own, back = mh.image_processor(EMBEDDED), mh.image_processor(tmp_path / "back")
    assert (own.to_dict() == back.to_dict()) == (ending == ".keras")
    notes = [] if ending == ".keras" else ["its 200 labels have no names (--labels), and images are prepared as for"]
    assert [note.split(" mobilevit-xxs: short side 288, crop 256, BGR")[0] for note in found.notes] == notes
    half = weights(Path(mh.__file__).parent / "assets" / EMBEDDED)
    single = {name: t.astype(np.float32) if t.dtype == np.float16 else t for name, t in half.items()}
    assert len(half) > len([name for name, t in half.items() if t.dtype == np.float16]) > 300
    assert_same(weights(tmp_path / "back"), single)
    labels = mh.from_pretrained(tmp_path / "back").config.id2label
    assert len(labels) == 200
    assert (labels == mh.from_pretrained(EMBEDDED).config.id2label) == (ending == ".keras")


@QUIET
@pytest.mark.parity
def test_keras_weights_of_a_published_network_get_its_labels_and_preprocessing(apple, tmp_path):
    convert(apple[V2], tmp_path / "x.weights.h5", verify=False)
    convert(tmp_path / "x.weights.h5", tmp_path / "back", verify=False)
    assert_same(weights(tmp_path / "back"), reference.state_dict(V2))
    assert mh.from_pretrained(tmp_path / "back").config.id2label[0] == imagenet_labels()[0]
    assert mh.image_processor(tmp_path / "back").channel_order == "rgb"


@QUIET
@pytest.mark.parity
@ENDINGS
def test_a_keras_file_of_a_trained_model_holds_its_optimizer_as_well(tiny_folder, tmp_path, ending):
    from keras_networks import images, keras

    folder, file = tiny_folder(2, ffn_dropout=0.1), tmp_path / f"x{ending}"
    model = mh.from_pretrained(folder, framework="tf")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, run_eagerly=True)
    model.fit(images(2, 32, 32), np.array([0, 2]), verbose=0)
    (model.save if ending == ".keras" else model.save_weights)(file)
    convert(file, tmp_path / "out", model=folder, verify=False)
    model.save_pretrained(tmp_path / "expected")
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "expected"))
    before = weights(folder)["classifier.weight"]
    assert not np.array_equal(weights(tmp_path / "out")["classifier.weight"], before)


# --------------------------------------------------------------------------------------------------
# What a file says about itself
# --------------------------------------------------------------------------------------------------

APPLE_FOLDER = "cvnets-v2/classification/mobilevitv2"


@pytest.mark.parametrize(("file", "options", "network", "size"), [
    ("mobilevit_xxs.pt", {}, "mobilevit-xxs", 256),
    (f"{APPLE_FOLDER}/imagenet1k/256x256/mobilevitv2-0.5.pt", {}, "mobilevitv2-0.5", 256),
    (f"{APPLE_FOLDER}/imagenet1k/384x384/mobilevitv2-0.5.pt", {}, "mobilevitv2-0.5-384", 384),
    (f"{APPLE_FOLDER}/imagenet21k_to_1k/384x384/mobilevitv2-1.5.pt", {}, "mobilevitv2-1.5-in22k-384", 384),
    ("mobilevitv2_150.cvnets_in22k_ft_in1k_384.safetensors", {}, "mobilevitv2-1.5-in22k-384", 384),
    ("mobilevitv2_050.cvnets_in1k.bin", {}, "mobilevitv2-0.5", 256),
    ("weights.pt", {"model": "mobilevitv2-0.5-384"}, "mobilevitv2-0.5-384", 384),
    ("mobilevitv2_050.cvnets_in1k.bin", {"model": "mobilevitv2-0.5-384"}, "mobilevitv2-0.5-384", 384),
])  # fmt: skip
def test_files_of_equal_shapes_are_told_apart_by_name(place, file, options, network, size):
    variant = XXS if "xxs" in network else "mobilevitv2_150" if "1.5" in network else V2
    scheme = "cvnets" if file.endswith(".pt") else "timm"
    save(place / file, reference.state_dict(variant, scheme))
    found = convert(place / file, place / "out", verify=False, **options)
    assert found.network == network and not any("taken for" in note for note in found.notes)
    assert config_of(place / "out")["image_size"] == size
    processor = mh.image_processor(place / "out")
    shorter = 384 if size == 384 else 288
    assert (dict(processor.size), processor.crop_size["height"]) == ({"shortest_edge": shorter}, size)
    assert list(config_of(place / "out")["id2label"].values())[:2] == imagenet_labels()[:2]


@pytest.mark.parametrize("name", ["weights.pt", "mobilevitv2-0.5.pt"])
def test_a_name_that_says_too_little_is_noted(apple, tmp_path, name):
    """Apple's files for 256 and 384 pixels have one name; the folders above tell them apart."""
    shutil.copy(apple[V2], tmp_path / name)
    found = convert(tmp_path / name, tmp_path / "out", verify=False)
    note, *others = found.notes
    assert [note[:24] for note in others] == ([] if name.startswith("mobilevit") else ["known as mobilevitv2-0.5"])
    assert note.startswith("taken for mobilevitv2-0.5 (256 px)") and "mobilevitv2-0.5-384" in note
    assert "--model" in note and note.replace("_", "\\_") in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("variant", "scheme", "name"), [(XXS, "cvnets", "x.pt"), (V2, "timm", "x.safetensors")])
def test_a_fine_tuned_classifier(tmp_path, variant, scheme, name):
    tensors = reference.state_dict(variant, scheme)
    head = [key for key in tensors if key.startswith(("classifier.", "head.fc."))]
    assert len(head) == 2
    source = save(tmp_path / name, tensors | {key: tensors[key][:10].copy() for key in head})
    found = convert(source, tmp_path / "out", verify=False)
    assert found.labels == 10 and weights(tmp_path / "out")["classifier.weight"].shape[0] == 10
    assert mh.from_pretrained(tmp_path / "out").config.num_labels == 10
    kinds = [f"kind {i}" for i in range(10)]
    convert(source, tmp_path / "named", labels=kinds, verify=False)
    config = mh.from_pretrained(tmp_path / "named").config
    assert list(config.id2label.values()) == kinds and config.label2id["kind 9"] == 9
    with pytest.raises(InputError, match="9 labels were given, but the classifier has 10 rows"):
        convert(source, tmp_path / "wrong", labels=kinds[1:], verify=False)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "ImageNet" not in card and "published top-1" not in card and "license" not in ModelCard(card).data.to_dict()


def halved(tensors):
    return {name: t if name.endswith("num_batches_tracked") else t.astype(np.float16) for name, t in tensors.items()}


@pytest.mark.parametrize("scheme", ["cvnets", "timm"])
def test_half_precision_stays_half_precision(tmp_path, scheme):
    source = save(tmp_path / "x.safetensors", halved(reference.state_dict(XXS, scheme)))
    convert(source, tmp_path / "out", verify=False)
    assert_same(weights(tmp_path / "out"), halved(reference.state_dict(XXS)))
    convert(tmp_path / "out", tmp_path / "back.pt", to=scheme, verify=False)
    assert_same(load(tmp_path / "back.pt"), load(source))


def under_apple_s_names(folder, variant):
    """The tensors of a version 1 folder by Apple's names, whatever their widths."""
    ours, theirs = weights(folder), {}
    for name, _ in reference.manifest()[variant]["tensors"]:
        parts = [ours[new] for new in reference.new_names(variant, name, "transformers")]
        theirs[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return theirs


@pytest.mark.parametrize("described_by", ["", "config.json"])
def test_a_network_of_no_published_size_is_described_by_a_config(tiny_folder, tmp_path, described_by):
    folder = tiny_folder(1, n_attn_blocks=[2, 4, 3])
    source = save(tmp_path / "x.pt", under_apple_s_names(folder, XXS))
    with pytest.raises(CheckpointError, match="shapes of no published size.*--model"):
        convert(source, tmp_path / "out", verify=False)
    found = convert(source, tmp_path / "out", model=folder / described_by, verify=False)
    assert (found.kind, found.network, found.labels) == ("Apple's ml-cvnets", "mobilevit", 3)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    convert(tmp_path / "out", tmp_path / "back.pt", verify=False)
    assert_same(load(tmp_path / "back.pt"), load(source))


def test_a_file_beside_its_config_is_read_as_that_says(tiny_folder, tmp_path):
    folder = tiny_folder(2)
    convert(folder / "model.safetensors", tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert mh.image_processor(tmp_path / "out").channel_order == "rgb"


TIMM_CONFIG = {
    "architecture": "mobilevit_xxs", "num_classes": 1000,
    "pretrained_cfg": {"input_size": [3, 256, 256], "crop_pct": 0.9, "interpolation": "bicubic"},
}  # fmt: skip


def test_names_on_the_hub(monkeypatch, tmp_path):
    """An alias takes labels, preprocessing and scores from our record; a Hub id what the repository says."""
    published_folder(tmp_path / "files", XXS, "model.safetensors", PROCESSOR | {"crop_size": 224})
    timm = save(tmp_path / "timm.safetensors", reference.state_dict(XXS, "timm"))
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add("apple/mobilevit-xx-small", {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()})
        files = {"config.json": json.dumps(TIMM_CONFIG).encode(), "model.safetensors": timm.read_bytes()}
        hub.add("timm/mobilevit_xxs.cvnets_in1k", files)
        for name, out in (
            ("mobilevit-xxs", "a"),
            ("apple/mobilevit-xx-small", "b"),
            ("timm/mobilevit_xxs.cvnets_in1k", "c"),
        ):
            convert(name, tmp_path / out, verify=False)
            assert_same(weights(tmp_path / out), reference.state_dict(XXS))
    orders = [mh.image_processor(tmp_path / out).channel_order for out in "abc"]
    crops = [mh.image_processor(tmp_path / out).crop_size["height"] for out in "abc"]
    assert (orders, crops) == (["bgr"] * 3, [256, 224, 256])
    cards = [ModelCard((tmp_path / out / "README.md").read_text("utf-8")) for out in "abc"]
    assert [bool(card.data.eval_results) for card in cards] == [True, False, False]
    assert cards[0].data.eval_results[0].metric_value == pytest.approx(0.69)
    assert list(config_of(tmp_path / "c")["id2label"].values())[:2] == imagenet_labels()[:2]


def test_an_https_address(server, monkeypatch, apple, tmp_path):  # noqa: F811
    monkeypatch.setattr(test_download, "CONTENT", apple[V2].read_bytes())
    url = f"{server.url}/file/{APPLE_FOLDER}/imagenet1k/384x384/mobilevitv2-0.5.pt"
    found = convert(
        f"{url}?token=secret", tmp_path / "out", verify=False, sha256=hashlib.sha256(test_download.CONTENT).hexdigest()
    )
    assert found.network == "mobilevitv2-0.5-384" and found.source == url
    assert_same(weights(tmp_path / "out"), reference.state_dict(V2))
    assert "secret" not in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    server.requests.clear()
    with pytest.raises(OfflineError):
        convert(url, tmp_path / "other", local_files_only=True, verify=False)
    assert not server.requests


# --------------------------------------------------------------------------------------------------
# What is written
# --------------------------------------------------------------------------------------------------


def test_the_card_says_where_the_weights_come_from(apple, tmp_path):
    found = convert(apple[XXS], tmp_path / "out", verify=False)
    content = apple[XXS].read_bytes()
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.git_blob == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert all(
        part in text for part in (found.sha256, found.git_blob, "mobilevit\\_xxs.pt", "Apple's ml-cvnets", "311")
    )
    data = ModelCard(text).data
    data.to_yaml()
    assert (data.license, data.base_model) == ("other", "apple/mobilevit-xx-small")
    assert data.license_name == "apple-sample-code-license" and data.license_link.startswith("https://")
    assert not data.eval_results  # which are those of the published file


def test_equal_input_gives_equal_bytes(apple, tmp_path):
    for name in ("one", "two"):
        convert(apple[XXS], tmp_path / name, verify=False)
        convert(apple[XXS], tmp_path / f"{name}.safetensors", verify=False)
        convert(apple[XXS], tmp_path / f"{name}.pt", verify=False)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for ending in (".safetensors", ".pt"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


@pytest.mark.parametrize("target", ["out", "out.pt"])
def test_what_is_there_is_replaced_only_when_asked(apple, tmp_path, target):
    output = tmp_path / target
    if output.suffix:
        output.write_bytes(b"mine")
    else:
        published_folder(output, V2, "model.safetensors", PROCESSOR)
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="is there already; pass overwrite"):
        convert(apple[XXS], output, verify=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == contents
    convert(apple[XXS], output, verify=False, overwrite=True)
    got, scheme = (load(output), "cvnets") if output.suffix else (weights(output), "transformers")
    assert_same(got, reference.state_dict(XXS, scheme))


def test_a_place_that_cannot_be_written(apple, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "folder.pt" / "notes.txt").write_bytes(b"mine")
    for output in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "folder.pt"):
        with pytest.raises(SaveError, match="Cannot save"):
            convert(apple[XXS], output, verify=False, overwrite=True)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.pt", "notes.txt"]
    (tmp_path / "empty").mkdir()
    convert(apple[XXS], tmp_path / "empty", verify=False)  # holds nothing that could be lost
    assert_same(weights(tmp_path / "empty"), reference.state_dict(XXS))


@pytest.mark.parametrize(("output", "options", "words"), [
    ("out.pt", {"to": "keras"}, "'out.pt' is no name for a keras file; it ends in .keras or .weights.h5"),
    ("out", {"to": "timm"}, "'out' is no name for a timm file; it ends in .safetensors, .pt, .pth or .bin"),
    ("out.keras", {"to": "cvnets"}, "'out.keras' is no name for a cvnets file"),
    ("out.h5", {}, "'out.h5': Keras names such files NAME.weights.h5"),
    ("out", {"to": "onnx"}, "to is 'onnx'; expected one of folder, cvnets, timm, keras"),
])  # fmt: skip
def test_names_that_do_not_suit_the_target(apple, tmp_path, output, options, words):
    with pytest.raises(InputError, match=words):
        convert(apple[XXS], tmp_path / output, verify=False, **options)
    assert not list(tmp_path.iterdir())


def test_an_option_that_is_misspelt(apple, tmp_path):
    with pytest.raises(TypeError, match="chanel_order"):
        convert(apple[XXS], tmp_path / "out", chanel_order="rgb", verify=False)
    assert not list(tmp_path.iterdir())
