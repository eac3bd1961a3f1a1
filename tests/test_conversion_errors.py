"""What cannot be converted: each wrong input has its own line, the right exit code, and leaves nothing behind."""

import hashlib
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from networks import MODELS, awake, tiny_config
from test_conversion import V2, XXS, load, save, weights

from mobilevit_hub.cli.main import main
from mobilevit_hub.conversion import convert
from mobilevit_hub.errors import InputError, NotFoundError, SaveError
from mobilevit_hub.hub.presets import get_preset, list_presets
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.network.names import renames

pytestmark = pytest.mark.torch

# TensorFlow and Keras hand NumPy an array in a way that NumPy is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEM, VARIANCE = "conv_1.block.conv.weight", "conv_1.block.norm.running_var"


@pytest.fixture(scope="module")
def apple():
    """The tensors of Apple's file of the smallest network."""
    return reference.state_dict(XXS, "cvnets")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a conversion, or another verb, that must fail in one line and leave everything as it is."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(*arguments, code=1, verb="convert", words=()):
        arguments = [verb, *map(str, arguments)]
        if verb == "convert":
            arguments += [str(tmp_path / "out"), "--no-verify"]
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        try:
            ended = main(arguments)
        except SystemExit as stopped:  # by the parser of arguments
            ended = stopped.code
        printed, said = capsys.readouterr()
        assert (ended, printed) == (code, "")
        *notes, line = said.splitlines()
        assert said.startswith("usage: ") or all(note.startswith("mobilevit-hub: note: ") for note in notes)
        assert line.startswith("mobilevit-hub") and "error: " in line
        for word in [words] if isinstance(words, str) else words:
            assert word in line, line
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before

    return run


# --------------------------------------------------------------------------------------------------
# Files that are no weights, or no longer
# --------------------------------------------------------------------------------------------------

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5123456\n"
NO_WEIGHTS = {
    "a Git LFS pointer": (POINTER, ["this is a Git LFS pointer of 132 bytes", "(5123456 bytes) were not downloaded"]),
    "a web page": ("<!DOCTYPE html>\n<html><title>Log in</title></html>", ["this is a web page, not weights"]),
    "an empty file": ("", ["the file is empty (0 bytes)"]),
    "a text file": ("These are no weights.\n" * 100, []),
}
DAMAGED = {
    ".pt": "damaged PyTorch file", ".bin": "damaged PyTorch file", ".safetensors": "no safetensors file",
    ".h5": "damaged HDF5 file", ".weights.h5": "damaged HDF5 file", ".keras": "damaged Keras file",
}  # fmt: skip


def ending(kind):
    """Files of HDF5 need h5py."""
    return pytest.param(kind, marks=pytest.mark.tf) if kind.endswith(("h5", "keras")) else kind


@pytest.mark.parametrize("kind", [*map(ending, DAMAGED)])
@pytest.mark.parametrize("what", NO_WEIGHTS)
def test_a_file_of_something_else(refused, tmp_path, what, kind):
    text, words = NO_WEIGHTS[what]
    source = tmp_path / f"x{kind}"
    source.write_text(text)
    refused(source, words=[str(source), *(words or [DAMAGED[kind].removeprefix("damaged ")])])


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short(refused, apple, tmp_path, kind, share):
    source = save(tmp_path / f"x{kind}", apple)
    content = source.read_bytes()
    source.write_bytes(content[: int(share * len(content))])
    words = {".pt": "damaged PyTorch file", ".safetensors": f"{int(share * len(content)):,}"}
    refused(source, words=[str(source), words[kind]])


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Folders of small networks of both versions."""
    folders = {}
    for version, name in ((1, "mobilevit"), (2, "mobilevitv2")):
        folders[version] = tmp_path_factory.mktemp("described") / name
        network = awake(MODELS[name](tiny_config(version, n_attn_blocks=[1, 1, 1])))
        network.save_pretrained(folders[version], processor=processor_for(72, 64, "bilinear", "rgb"))
    return folders


@QUIET
@pytest.mark.parity
@pytest.mark.parametrize("kind", [".keras", ".weights.h5"])
def test_a_keras_file_that_is_cut_short_or_of_another_network(refused, described, tmp_path, kind, capsys):
    source = tmp_path / f"x{kind}"
    assert main(["convert", str(described[1]), str(source), "--no-verify", "--json"]) == 0
    capsys.readouterr()
    if kind == ".weights.h5":
        refused(source, words="holds the shapes of no published classifier")
        refused(source, "--model", described[2], words=["TFMobileViTV2ForImageClassification of this size has"])
    refused(source, "--model", "mobilevit-xxs", words=[str(source)])
    whole = source.read_bytes()
    for share in (0.01, 0.5, 0.999):
        source.write_bytes(whole[: int(share * len(whole))])
        refused(source, "--model", described[1], words=[str(source), DAMAGED[kind]])


@pytest.mark.tf
def test_an_old_tensorflow_file_that_is_cut_short(refused, tmp_path):
    from test_keras_legacy import write_h5

    write_h5(tmp_path / "tf_model.h5", reference.state_dict(XXS))
    (tmp_path / "config.json").write_text(json.dumps(reference.config(XXS)))
    whole = (tmp_path / "tf_model.h5").read_bytes()
    for share in (0.01, 0.5, 0.999):
        (tmp_path / "tf_model.h5").write_bytes(whole[: int(share * len(whole))])
        for source in (tmp_path, tmp_path / "tf_model.h5"):
            refused(source, words=["tf_model.h5", "damaged HDF5 file"])


# --------------------------------------------------------------------------------------------------
# Hostile files
# --------------------------------------------------------------------------------------------------


class _Code:
    """What a pickle runs when it is opened without care."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("kind", [".pt", ".bin", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code(refused, apple, tmp_path, kind, zipped):
    marker, source = tmp_path / "marker", tmp_path / f"x{kind}"
    content = {STEM: torch.from_numpy(apple[STEM]), "more": _Code(marker)}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    refused(source, words=["contains code", "was not opened", "safetensors"])
    assert not marker.exists()
    torch.load(source, weights_only=False)["more"].close()  # which shows that the file is dangerous
    assert marker.exists()


def test_a_zip_bomb(refused, apple, tmp_path):
    source = save(tmp_path / "x.pt", apple | {STEM: np.zeros((16, 3, 3, 3), np.float32)})
    with zipfile.ZipFile(source) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(50_000_000) if name.endswith("/data/0") else content)
    refused(source, words=["are compressed, which weights files never are", "possible zip bomb"])


@pytest.mark.tf
def test_a_zip_bomb_for_keras(refused, tmp_path):
    source = tmp_path / "x.keras"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json"):
            archive.writestr(name, "{}")
        archive.writestr("model.weights.h5", bytes(50_000_000))
    refused(source, words=["unpack to 50,000,004, which weights never do", "possible zip bomb"])


@QUIET
@pytest.mark.tf
def test_a_keras_model_of_something_else(refused, tmp_path):
    """A model with code of its own in it is one as well."""
    from keras_networks import keras

    source, marker = tmp_path / "x.keras", str(tmp_path / "marker")
    code = keras.layers.Lambda(lambda x: __import__("os").mkdir(marker) or x)
    for layer in (keras.layers.Dense(3), code):
        model = keras.Sequential([keras.Input((2,)), layer])
        model.save(source)
        (tmp_path / "marker").exists() and (tmp_path / "marker").rmdir()  # made while it was built
        refused(source, words=["holds a 'Sequential' of 'keras", "not a model of this package"])
        assert not (tmp_path / "marker").exists()
    keras.saving.load_model(source, safe_mode=False)
    assert (tmp_path / "marker").exists()  # which shows that the file is dangerous
    model.save_weights(tmp_path / "x.weights.h5")
    refused(tmp_path / "x.weights.h5", words="holds the shapes of no published classifier")


# --------------------------------------------------------------------------------------------------
# Other networks
# --------------------------------------------------------------------------------------------------


def resnet():
    """Names and shapes as torchvision's ResNet-18 has them, of two blocks."""
    tensors = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "bn1.bias": (64,), "bn1.running_mean": (64,)}
    for block in range(2):
        for conv in (1, 2):
            tensors[f"layer1.{block}.conv{conv}.weight"] = (64, 64, 3, 3)
            tensors |= {f"layer1.{block}.bn{conv}.{leaf}": (64,) for leaf in ("weight", "bias", "running_var")}
    tensors |= {"fc.weight": (1000, 512), "fc.bias": (1000,)}
    return {name: np.ones(shape, np.float32) for name, shape in tensors.items()}


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_another_family(refused, tmp_path, kind):
    source = save(tmp_path / f"x{kind}", resnet())
    refused(source, words=["not the tensors of a MobileViT", "bn1.bias", "look like a ResNet's"])
    refused(source, "--model", "mobilevit-s", words=["not the tensors of a MobileViT", "a ResNet's"])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    shutil.copy(source, folder / ("model.safetensors" if kind == ".safetensors" else "pytorch_model.bin"))
    refused(folder, words=["'resnet'", "mobilevit"])


@pytest.mark.parametrize(("variant", "scheme", "asked", "found"), [
    ("mobilevit_xs", "cvnets", "mobilevit-s", "mobilevit-xs"),
    ("mobilevit_xs", "timm", "apple/mobilevit-small", "mobilevit-xs"),
    (XXS, "transformers", "mobilevit-xs", "mobilevit-xxs"),
    (V2, "cvnets", "mobilevitv2-0.75", "mobilevitv2-0.5"),
    (V2, "cvnets", "mobilevit-xxs", "mobilevitv2-0.5"),
])  # fmt: skip
def test_another_size_than_is_asked_for(refused, tmp_path, variant, scheme, asked, found):
    source = save(tmp_path / "x.safetensors", reference.state_dict(variant, scheme))
    name = get_preset(asked).name
    refused(source, "--model", asked, words=[f"holds a classifier ({found}, 1000 labels), but {name!r} was asked for"])


@pytest.mark.parametrize(("alias", "scheme", "words"), [
    ("deeplabv3-mobilevit-xxs-voc", "cvnets-0.1", "DeepLabv3 segmentation network (mobilevit-xxs, 21 labels)"),
    ("deeplabv3-mobilevitv2-0.5-voc", "cvnets", "DeepLabv3 segmentation network (mobilevitv2-0.5, 21 labels)"),
    ("pspnet-mobilevitv2-0.5-ade20k", "cvnets", "PSPNet segmentation network (mobilevitv2-0.5, 150 labels)"),
    ("ssdlite-mobilevit-xxs", "cvnets", "SSDLite detector (mobilevit-xxs, 80 labels)"),
    ("ssdlite-mobilevitv2-0.5", "cvnets", "SSDLite detector (mobilevitv2-0.5, 80 labels)"),
])  # fmt: skip
def test_segmentation_and_detection_files_are_told_by_name(refused, tmp_path, alias, scheme, words):
    preset = get_preset(alias)
    config = config_from_dict({"model_type": preset.model_type, "num_labels": preset.num_labels, **preset.config})
    head = "ssdlite" if preset.task == "object-detection" else alias.partition("-")[0]
    table = renames(config, scheme, head, auxiliary=head != "ssdlite")
    tensors = {rename.theirs: np.ones(rename.shape, np.float32) for rename in table}
    source = save(tmp_path / preset.apple_file.rsplit("/", 1)[-1], tensors)
    refused(source, words=[words, "this release converts classifiers"])


# --------------------------------------------------------------------------------------------------
# Tensors
# --------------------------------------------------------------------------------------------------


def changed(tensor, index, value):
    tensor = tensor.copy()
    tensor.flat[index] = value
    return tensor


WRONG_TENSORS = {
    "all have other names": (lambda t: {f"net.{n}": v for n, v in t.items()}, ["not the tensors of a MobileViT"]),
    "one has another name": (
        lambda t: {n.replace("conv_1x1_exp.block.conv", "conv_1x1_exp.conv"): v for n, v in t.items()},
        ["1 missing (conv_1x1_exp.block.conv.weight)", "1 unexpected (conv_1x1_exp.conv.weight)", "Apple's ml-cvnets"],
    ),
    "one is missing": (lambda t: {n: v for n, v in t.items() if n != STEM}, [f"1 missing ({STEM})"]),
    "one is too many": (lambda t: t | {"mean": np.ones(3, np.float32)}, ["1 unexpected (mean)"]),
    "one has another shape": (
        lambda t: t | {STEM: t[STEM][:, :1].copy()},
        [f"1 wrong shape ({STEM} (found [16, 1, 3, 3], expected [16, 3, 3, 3]))"],
    ),
    "one is transposed": (
        lambda t: t | {"classifier.fc.weight": t["classifier.fc.weight"].T.copy()},
        ["classifier.fc.weight", "[320, 1000]"],
    ),
    "not a number": (lambda t: t | {STEM: changed(t[STEM], 5, np.nan)}, [repr(STEM), "NaN or infinity"]),
    "infinity": (lambda t: t | {STEM: changed(t[STEM], -1, -np.inf)}, [repr(STEM), "NaN or infinity"]),
    "a negative variance": (
        lambda t: t | {VARIANCE: changed(t[VARIANCE], 0, -1e-8)},
        [repr(VARIANCE), "negative variance"],
    ),
    "whole numbers": (lambda t: t | {STEM: t[STEM].astype(np.int32)}, [repr(STEM), "int32"]),
    "none": (lambda t: {}, ["not the tensors of a MobileViT"]),
}


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_tensors_that_are_wrong(refused, apple, tmp_path, what, kind):
    change, words = WRONG_TENSORS[what]
    source = save(tmp_path / f"x{kind}", change(dict(apple)))
    refused(source, words=[str(source), *words])


def test_a_folder_with_wrong_tensors(refused, described, tmp_path):
    folder = shutil.copytree(described[1], tmp_path / "folder")
    good = weights(folder)
    name = "mobilevit.conv_stem.convolution.weight"
    save(folder / "model.safetensors", {n: v for n, v in good.items() if n != name})
    refused(folder, words=[f"1 missing. missing: {name}"])
    save(folder / "model.safetensors", good | {name: good[name][:-1]})
    refused(folder, words=[f"1 wrong shape. wrong shape: {name} (found [7, 3, 3, 3], expected [8, 3, 3, 3])"])


def test_config_and_weights_of_different_saves(refused, described, tmp_path):
    folder = shutil.copytree(described[1], tmp_path / "folder")
    other = awake(MODELS["mobilevit"](tiny_config(1, n_attn_blocks=[1, 1, 1])), seed=1)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    for source in (folder, folder / "model.safetensors"):
        refused(source, words=["weights and config come from different saves"])


# --------------------------------------------------------------------------------------------------
# Names, hashes and options
# --------------------------------------------------------------------------------------------------


def test_what_is_not_there(refused, tmp_path):
    refused(tmp_path / "none.pt", words=f"There is no file '{tmp_path / 'none.pt'}'")
    refused(tmp_path / "none", words=f"There is no folder '{tmp_path / 'none'}'")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", words="has no config.json")
    (tmp_path / "empty" / "config.json").write_text(json.dumps(reference.config(XXS)))
    refused(tmp_path / "empty", words="has no model.safetensors or pytorch_model.bin")
    (tmp_path / "notes.txt").write_text("no weights")
    refused(tmp_path / "notes.txt", words=["notes.txt"])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that is there and cannot be read")
@pytest.mark.parametrize("kind", [*map(ending, DAMAGED)])
def test_a_file_that_cannot_be_read(refused, tmp_path_factory, kind):
    source = tmp_path_factory.mktemp("unreadable") / f"x{kind}"
    source.symlink_to("/proc/self/mem")
    refused(source, words=[f"{source}: cannot be read: "])


def test_no_place_for_temporary_files(refused, apple, tmp_path, monkeypatch):
    source = save(tmp_path / "x.safetensors", apple)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # what the system found, or TMPDIR named
    refused(source, words=["No temporary folder can be made: No such file or directory", "set TMPDIR"])


@pytest.mark.parametrize("name", ["~nobody_/x.pt", "a" * 5000 + ".pt", "x/" + "a" * 5000])
def test_names_that_no_system_takes(refused, apple, tmp_path, name):
    refused(name, words=name[:100])
    refused(save(tmp_path / "x.pt", apple), "--model", name, words=name[:100])
    refused(name, verb="verify", words=name[:100])
    refused(name, "me/new", verb="push", words=name[:100])


@pytest.mark.parametrize(("name", "nearest"), [("mobilvit-s", "mobilevit-s"), ("mobilevitv2-2", "mobilevitv2-2.0")])
def test_an_unknown_alias_has_the_nearest_names(refused, apple, tmp_path, name, nearest):
    words = [f"Unknown checkpoint {name!r}. Did you mean {nearest!r}"]
    refused(name, words=words)
    refused(save(tmp_path / "x.pt", apple), "--model", name, words=words)
    refused(name, verb="verify", words=words)


def test_aliases_that_no_repository_has(refused):
    missing = [p for p in list_presets("image-classification") if p.unavailable]
    assert {"mobilevitv2-0.5-384", "mobilevitv2-2.0-384"} <= {p.name for p in missing}
    for preset in missing:
        refused(preset.name, words=["is in no Hub repository", preset.apple_file, f"--model {preset.name}"])
    refused("deeplabv3-mobilevit-s-voc", words=["semantic-segmentation checkpoints are not loadable yet"])


def test_a_hash_that_is_another_or_none(refused, apple, tmp_path):
    source = save(tmp_path / "x.pt", apple)
    right = hashlib.sha256(source.read_bytes()).hexdigest()
    refused(source, "--sha256", "0" * 64, words=[right, "0" * 64, "another file, or was damaged"])
    for wrong in ("0" * 63, "g" * 64, "", right + "0"):
        refused(source, "--sha256", wrong, code=2, words=[f"sha256 is {wrong!r}", "64 hexadecimal digits"])
    output = str(tmp_path / "out")
    assert main(["convert", str(source), output, "--sha256", right.upper(), "--no-verify"]) == 0


def test_an_address_without_https(refused):
    refused("http://127.0.0.1/x.pt", code=2, words="only https is accepted")
    refused("file:///tmp/x.pt", code=2, words="only https is accepted")


@pytest.mark.parametrize(("options", "words"), [
    (["--to", "onnx"], ["--to", "invalid choice: 'onnx'"]),
    (["--channel-order", "brg"], ["--channel-order", "invalid choice: 'brg'"]),
    (["--labels", "none.txt"], ["--labels 'none.txt'", "No such file"]),
    (["--to", "timm"], ["'out' is no name for a timm file"]),
    (["--frobnicate"], ["--frobnicate"]),
])  # fmt: skip
def test_options_that_are_wrong(refused, apple, tmp_path, options, words):
    refused(*options, save(tmp_path / "x.pt", apple), code=2, words=words)


def test_labels_that_are_wrong(refused, apple, tmp_path):
    source, labels = save(tmp_path / "x.pt", apple), tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    refused(source, "--labels", labels, code=2, words="2 labels were given, but the classifier has 1000 rows")
    labels.write_bytes(b"\xff\xfe")
    refused(source, "--labels", labels, code=2, words="is no UTF-8 text")


def test_an_output_that_is_there(refused, apple, tmp_path):
    source = save(tmp_path / "x.pt", apple)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(source, "--no-verify", code=2, words=["is there already", "--overwrite"])
    assert load(source).keys() == apple.keys()


@pytest.mark.parametrize("kind", [".onnx", ".ONNX", ".tflite", ".npz", ".ckpt", ".zip"])
def test_an_output_of_another_kind_is_refused_at_once(tmp_path, kind):
    """Not even the source, which is not there, is looked for."""
    output = tmp_path / f"out{kind}"
    with pytest.raises(
        InputError, match=rf"'out{kind}' ends in {kind}, which is no format of conversion; expected \.pt"
    ):
        convert(tmp_path / "none.pt", output, verify=False)
    with pytest.raises(NotFoundError, match=r"none\.pt"):
        convert(tmp_path / "none.pt", output, to="folder", verify=False)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", pytest.param("x.keras", marks=pytest.mark.tf)])
def test_an_output_in_a_folder_that_is_not_there_is_refused_at_once(tmp_path, name):
    with pytest.raises(SaveError, match="the folder above it does not exist") as caught:
        convert(tmp_path / "none.pt", tmp_path / "none" / name, verify=False)
    assert caught.value.path == str(tmp_path / "none" / name)
    assert not list(tmp_path.iterdir())


def test_the_home_folder_in_an_output(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("out", "out.safetensors"):
        found = convert("mobilevit-xxs-tiny-imagenet", f"~/{name}", verify=False)
        assert found.output == str(tmp_path / name) and (tmp_path / name).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.safetensors"]


@pytest.mark.parametrize("name", ["~nobody_/none/x.pt", "a" * 300 + ".safetensors", "a" * 300, "x\0.safetensors"])
def test_outputs_that_no_system_takes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SaveError, match="Cannot save"):
        convert("mobilevit-xxs-tiny-imagenet", name, verify=False)
    assert not list(tmp_path.iterdir())


def test_an_error_as_json(apple, tmp_path, capsys):
    source = save(tmp_path / "x.pt", apple | {STEM: np.full((16, 3, 3, 3), np.nan, np.float32)})
    assert main(["convert", str(source), str(tmp_path / "out"), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["type"], error["path"], error["field"]) == ("CheckpointError", str(source), STEM)
