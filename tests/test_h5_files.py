"""HDF5 weights and `.keras` archives, read without Keras: good ones, damaged ones, hostile ones."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import hiding
import numpy as np
import pytest

import mobilevit_hub.checkpoints.h5_files as module
from mobilevit_hub.checkpoints.h5_files import check_weights_h5, inspect_keras, read_h5
from mobilevit_hub.errors import CheckpointError, ConfigError, MobileViTHubError, NotFoundError, SourceError

h5py = pytest.importorskip("h5py", reason="needs h5py")

NORM = "layers/model/layers/conv/normalization/vars"
ARRAYS = {
    "layers/dense/vars/0": np.ones((4, 3), "f4"),
    f"{NORM}/0": np.ones(8, "f4"),
    f"{NORM}/4": np.array(7, "i8"),
    "seed_generator/vars/0": np.ones(2, "u4"),
}
CONFIG = {
    "module": "mobilevit_hub.tf.mobilevit",
    "class_name": "TFMobileViTForImageClassification",
    "config": {"config": {"model_type": "mobilevit"}},
    "registered_name": "mobilevit_hub>TFMobileViTForImageClassification",
}


def write_weights(path):
    """The layout in which Keras 3 writes weights."""
    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            file[name] = array
        file.create_group("layers/dropout/vars").attrs["name"] = "dropout"
    return path


def refused(kind, read, path, *words):
    """The message with which a file is refused."""
    with pytest.raises(MobileViTHubError) as caught:
        read(path)
    message = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message
    return message


# --------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------


def test_every_dataset_is_listed_with_its_shape(tmp_path):
    shapes = check_weights_h5(write_weights(tmp_path / "x.weights.h5"))
    assert shapes == {name: array.shape for name, array in ARRAYS.items()}


def external_dataset(file):
    file.create_dataset("layers/x", (8,), "f4", external=[("/etc/hostname", 0, 32)])


def virtual_dataset(file):
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (8,))
    file.create_virtual_dataset("layers/x", layout)


def bomb(file, shape=(2**20, 2**20)):
    file.create_dataset("layers/x", shape, "f4", chunks=(1024, 1024), compression="gzip")


def link(target):
    return lambda file: file["layers"].__setitem__("x", target)


def dataset(value):
    return lambda file: file.create_dataset("layers/x", data=value)


HOSTILE = {
    "a link to another file": (link(h5py.ExternalLink("other.h5", "/x")), ["'layers/x'", "another file, 'other.h5'"]),
    "a link to nothing": (link(h5py.SoftLink("/nothing")), ["'layers/x' is a link to '/nothing'", "refused"]),
    "a link inside": (link(h5py.SoftLink("/layers/dense/vars/0")), ["is a link to '/layers/dense/vars/0'", "refused"]),
    "a link at the top": (lambda f: f.__setitem__("x", h5py.ExternalLink("o.h5", "/")), ["'x' is a link", "'o.h5'"]),
    "values in another file": (external_dataset, ["'layers/x' claims 8 values", "stores fewer"]),
    "values of other datasets": (virtual_dataset, ["'layers/x' claims 8 values", "stores fewer"]),
    "more than it stores": (bomb, ["claims 1,099,511,627,776 values", "stores fewer"]),
    "a number of bytes above 64 bits": (lambda f: bomb(f, (2**40, 2**40)), [f"claims {2**80:,} values"]),
    "text": (dataset("text"), ["'layers/x' is no array of numbers", "object"]),
    "bytes": (dataset(np.array(b"text")), ["is no array of numbers", "S4"]),
    "opaque bytes": (dataset(np.zeros(3, "V4")), ["is no array of numbers", "V4"]),
    "records": (dataset(np.zeros(3, "f4,i4")), ["is no array of numbers"]),
    "no value": (dataset(h5py.Empty("f4")), ["is no array of numbers"]),
    "complex numbers": (dataset(np.zeros(3, "c8")), ["is no array of numbers", "complex64"]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_weights_are_refused(tmp_path, what):
    change, words = HOSTILE[what]
    path = write_weights(tmp_path / "x.weights.h5")
    with h5py.File(path, "a") as file:
        change(file)
    refused(CheckpointError, check_weights_h5, path, *words)


def test_the_old_file_is_checked_in_the_same_way(tmp_path):
    path = tmp_path / "tf_model.h5"
    for what in ("a link to another file", "a link inside", "values in another file", "more than it stores"):
        change, words = HOSTILE[what]
        with h5py.File(path, "w") as file:
            file.create_group("layers")
            change(file)
        refused(CheckpointError, read_h5, path, *words)


def test_datasets_that_share_their_bytes_are_refused(tmp_path):
    """Each describes no more than the file has, all together they do."""
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        whole, small = (
            file.create_dataset("a", data=np.ones(9999, "f4")),
            file.create_dataset("b", data=np.ones(7, "f4")),
        )
        there, here = whole.id.get_offset(), small.id.get_offset()
    content = path.read_bytes()
    place = struct.pack("<QQ", here, 7 * 4)
    assert content.count(place) == 1
    content = content.replace(place, struct.pack("<QQ", there, 9999 * 4))
    path.write_bytes(content.replace(struct.pack("<Q", 7), struct.pack("<Q", 9999)))
    with h5py.File(path) as file:
        assert file["b"].shape == (9999,) and file["b"].id.get_storage_size() == 9999 * 4
    refused(CheckpointError, check_weights_h5, path, "'b' claims 9,999 values", "stores fewer")


def test_a_size_beyond_the_end_of_the_file_is_refused(tmp_path):
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(9999, "f4")
    content = path.read_bytes().replace(struct.pack("<Q", 9999), struct.pack("<Q", 2**40))
    path.write_bytes(content.replace(struct.pack("<Q", 9999 * 4), struct.pack("<Q", 2**42)))
    refused(CheckpointError, check_weights_h5, path)


def test_too_many_datasets(tmp_path, monkeypatch):
    path = write_weights(tmp_path / "x.weights.h5")
    monkeypatch.setattr(module, "MAX_TENSORS", len(ARRAYS))
    assert len(check_weights_h5(path)) == len(ARRAYS)
    monkeypatch.setattr(module, "MAX_TENSORS", len(ARRAYS) - 1)
    refused(CheckpointError, check_weights_h5, path, "holds more than 3 tensors")


OTHER_FILES = {
    b"": "file is empty",
    b"not HDF5 at all": "damaged",
    b"<!DOCTYPE html><html>": "this is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5000\n": "Git LFS pointer",
}


@pytest.mark.parametrize("content", OTHER_FILES)
@pytest.mark.parametrize("read", [check_weights_h5, read_h5, inspect_keras])
def test_other_files(tmp_path, read, content):
    (tmp_path / "file").write_bytes(content)
    refused(CheckpointError, read, tmp_path / "file", OTHER_FILES[content])


@pytest.mark.parametrize("read", [check_weights_h5, read_h5, inspect_keras])
def test_no_file(tmp_path, read):
    refused(NotFoundError, read, tmp_path / "nothing", "no such file")
    refused(NotFoundError, read, tmp_path, "no such file")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_weights_that_are_cut_short(tmp_path, kept):
    path = write_weights(tmp_path / "x.weights.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(CheckpointError, check_weights_h5, path, "damaged HDF5 file")


def test_the_old_file_comes_under_our_names_and_in_our_layout(tmp_path, rng):
    convolution, matrix = rng.normal(size=(8, 4, 3, 2)).astype("f4"), rng.normal(size=(5, 3)).astype("f4")
    scope = "mobilevit/tf_mobile_vi_t_for_image_classification/mobilevit"
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        stored = np.einsum("oihw->hwio", convolution)
        file[f"{scope}/conv_stem/convolution/kernel:0"] = stored
        file[f"{scope}/conv_stem/normalization/moving_variance:0"] = np.arange(8, dtype="f4")
        file["classifier/tf_mobile_vi_t_for_image_classification/classifier/kernel:0"] = np.einsum("oi->io", matrix)
    tensors = read_h5(tmp_path / "tf_model.h5")
    expected = {
        "mobilevit.conv_stem.convolution.weight": convolution,
        "mobilevit.conv_stem.normalization.running_var": np.arange(8, dtype="f4"),
        "classifier.weight": matrix,
    }
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", [">f4", ">f2", ">f8"])
def test_numbers_of_the_other_byte_order_keep_their_values(tmp_path, rng, kind):
    matrix = rng.normal(size=(5, 3)).astype(kind)
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        file["classifier/kernel:0"] = matrix.T
        assert file["classifier/kernel:0"].dtype.str == kind
    (tensor,) = read_h5(tmp_path / "tf_model.h5").values()
    assert tensor.dtype == np.dtype(kind[1:]) and tensor.dtype.isnative
    assert tensor.tolist() == matrix.tolist()


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="needs long doubles that are longer than doubles")
@pytest.mark.parametrize("read", [check_weights_h5, read_h5])
def test_numbers_that_are_longer_than_doubles_are_refused(tmp_path, read):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["classifier/kernel:0"] = np.ones((5, 3), np.longdouble)
    refused(CheckpointError, read, tmp_path / "x.h5", "'classifier/kernel:0' is no array of", "float")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that is there and cannot be read")
@pytest.mark.parametrize("read", [check_weights_h5, read_h5, inspect_keras])
def test_a_file_that_cannot_be_read(tmp_path, read):
    (tmp_path / "file").symlink_to("/proc/self/mem")
    refused(SourceError, read, tmp_path / "file", "cannot be read: ")


# --------------------------------------------------------------------------------------------------
# Archives
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path):
    """The parts of a `.keras` file."""
    return {
        "metadata.json": b'{"keras_version": "3.15.1"}',
        "config.json": json.dumps(CONFIG).encode(),
        "model.weights.h5": write_weights(tmp_path / "part").read_bytes(),
    }


def archive(folder, parts, compression=zipfile.ZIP_STORED):
    path = folder / "x.keras"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


def test_a_good_archive_gives_its_config(tmp_path, parts):
    assert inspect_keras(archive(tmp_path, parts)) == CONFIG
    assert inspect_keras(archive(tmp_path, parts | {"assets/": b"", "assets/model/": b""})) == CONFIG
    assert inspect_keras(archive(tmp_path, parts, zipfile.ZIP_DEFLATED)) == CONFIG


@pytest.mark.parametrize(("change", "words"), [
    (lambda p: p.pop("config.json"), ["holds 'metadata.json', 'model.weights.h5'; expected"]),
    (lambda p: p.update({"code.py": b"raise SystemExit"}), ["'code.py'", "no other"]),
    (lambda p: p.update({"assets/words.txt": b"hello"}), ["'assets/words.txt'", "no other"]),
    (lambda p: p.update({"../x\n.txt": b""}), [r"'../x\n.txt'", "no other"]),
    (lambda p: p.clear(), ["holds nothing; expected"]),
])  # fmt: skip
def test_archives_of_other_parts_are_refused(tmp_path, parts, change, words):
    change(parts)
    refused(CheckpointError, inspect_keras, archive(tmp_path, parts), *words)


def test_a_part_that_is_there_twice_is_refused(tmp_path, parts):
    path = archive(tmp_path, parts)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("config.json", json.dumps(CONFIG | {"class_name": "Sequential"}))
    refused(CheckpointError, inspect_keras, path, "'config.json', 'config.json'", "each once")


def test_zip_bombs_are_refused(tmp_path, parts, monkeypatch):
    parts["model.weights.h5"] += bytes(30_000_000)
    path = archive(tmp_path, parts, zipfile.ZIP_DEFLATED)
    size = path.stat().st_size
    refused(CheckpointError, inspect_keras, path, f"its {size:,} bytes unpack to 30,0", "zip bomb")
    # Where the archive does not say how much it is, nothing beyond what it says is unpacked.
    stated = struct.pack("<I", len(parts["model.weights.h5"]))
    path.write_bytes(path.read_bytes().replace(stated, struct.pack("<I", 1000)))
    refused(CheckpointError, inspect_keras, path, "damaged Keras file", "CRC")
    monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 29_999_999)
    refused(CheckpointError, inspect_keras, archive(tmp_path, parts), "model.weights.h5 unpacks to 30,0", "29,999,999")
    parts["config.json"] = b" " * (8 * 2**20 + 1)
    path = archive(tmp_path, parts, zipfile.ZIP_DEFLATED)
    refused(CheckpointError, inspect_keras, path, "config.json unpacks to 8,388,609 bytes; the limit is 8,388,608")


def test_damaged_archives_are_refused(tmp_path, parts):
    path = archive(tmp_path, parts)
    whole = path.read_bytes()
    at = whole.index(np.ones(8, "f4").tobytes())
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    refused(CheckpointError, inspect_keras, path, "damaged Keras file", "CRC", "model.weights.h5")
    path.write_bytes(whole[: len(whole) // 2])
    refused(CheckpointError, inspect_keras, path, "damaged Keras file", "not a zip file")
    # The bit that says that a part is encrypted, in the central directory.
    at = whole.index(b"PK\1\2") + 8
    path.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    refused(CheckpointError, inspect_keras, path, "damaged Keras file", "encrypted")


@pytest.mark.parametrize(("change", "words"), [
    ({"class_name": "Sequential", "module": "keras"}, ["holds a 'Sequential' of 'keras', not a model of this package"]),
    ({"class_name": "Functional", "module": "mobilevit_hub.tf.mobilevit"}, ["'Functional'", "not a model of this"]),
    ({"module": "os.path"}, ["of 'os.path'", "expected one of", "TFMobileViTV2Backbone"]),
    ({"module": "mobilevit_hub.tfx"}, ["of 'mobilevit_hub.tfx'"]),
    ({"module": None}, ["of None"]),
    ({"class_name": ["TFMobileViTModel"]}, ["holds a ['TFMobileViTModel']"]),
    ({"registered_name": "Custom>Evil"}, ["not a model of this package"]),
    ({"config": None}, ["does not describe the network"]),
    ({"config": {"config": "mobilevit-xxs"}}, ["does not describe the network"]),
])  # fmt: skip
def test_models_of_other_packages_are_refused(tmp_path, parts, change, words):
    parts["config.json"] = json.dumps(CONFIG | change).encode()
    refused(CheckpointError, inspect_keras, archive(tmp_path, parts), *words)


@pytest.mark.parametrize(("content", "kind", "words"), [
    (b"{", ConfigError, ["config.json", "not valid JSON at line 1"]),
    (b"[]", ConfigError, ["config.json", "must be a JSON object"]),
    (b'{"module": 1, "module": 2}', ConfigError, ["key 'module' stands there twice"]),
    (b'{"module": NaN}', ConfigError, ["not a finite number"]),
    (b'{"a": ' * 40 + b"1" + b"}" * 40, ConfigError, ["nested deeper"]),
    (b"\xff\xfe", CheckpointError, ["damaged Keras file", "utf-8"]),
])  # fmt: skip
def test_a_config_that_cannot_be_read(tmp_path, parts, content, kind, words):
    parts["config.json"] = content
    refused(kind, inspect_keras, archive(tmp_path, parts), *words)


@pytest.mark.parametrize("what", ["a link to another file", "values in another file", "more than it stores", "text"])
def test_hostile_weights_in_an_archive_are_refused(tmp_path, parts, what):
    change, words = HOSTILE[what]
    with h5py.File(tmp_path / "part", "a") as file:
        change(file)
    path = archive(tmp_path, parts | {"model.weights.h5": (tmp_path / "part").read_bytes()})
    refused(CheckpointError, inspect_keras, path, *words)
    refused(CheckpointError, inspect_keras, archive(tmp_path, parts | {"model.weights.h5": b"no"}), "damaged HDF5 file")


# --------------------------------------------------------------------------------------------------
# With Keras, without it, without h5py
# --------------------------------------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_keras_writes_of_our_models_passes(tmp_path):
    import keras_networks
    from keras_networks import keras

    compiled = keras_networks.tiny(1)
    compiled.compile("adam", "mse")
    compiled.optimizer.build(compiled.trainable_variables)
    backbone = keras_networks.BACKBONES[2](keras_networks.tiny_config(2))
    for model, others in ((compiled, compiled.optimizer.variables), (backbone, [])):
        model.save(tmp_path / "x.keras")
        model.save_weights(tmp_path / "x.weights.h5")
        found = inspect_keras(tmp_path / "x.keras")
        assert found["class_name"] == type(model).__name__
        assert found["config"]["config"]["model_type"] == model.config.model_type
        shapes = check_weights_h5(tmp_path / "x.weights.h5")
        assert sorted(shapes.values()) == sorted(tuple(variable.shape) for variable in [*model.weights, *others])
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save(tmp_path / "y.keras")
    refused(CheckpointError, inspect_keras, tmp_path / "y.keras", "holds a 'Sequential' of 'keras'")


CODE = """
import sys
import hiding
from mobilevit_hub.errors import MissingDependencyError
from mobilevit_hub.checkpoints.h5_files import check_weights_h5, inspect_keras

try:
    print(len(check_weights_h5(sys.argv[1])), inspect_keras(sys.argv[2])["class_name"])
except MissingDependencyError as error:
    print(error)
"""


@pytest.mark.parametrize(("hidden", "printed"), [
    ("keras,tensorflow,torch", f"{len(ARRAYS)} TFMobileViTForImageClassification"),
    ("h5py", r'Reading x.weights.h5 needs h5py.*pip install "mobilevit_hub\[tf\]"\.'),
])  # fmt: skip
def test_keras_is_not_needed_and_h5py_is(tmp_path, parts, hidden, printed):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", CODE, write_weights(tmp_path / "x.weights.h5"), archive(tmp_path, parts)],
        env=os.environ | {hiding.VARIABLE: ",".join({hidden, *hiding.HIDDEN}), "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout.strip()), done.stdout
