"""Exports that fail: one line that says why, nothing half-written, and what was there before is as it was."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from keras_networks import QUIET, fresh_process, keras
from safetensors.numpy import load_file, save_file

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

from test_tflite_export import save_checkpoint, save_photos, save_pictures

from mobilevit_hub.cli.main import main
from mobilevit_hub.conversion import export_all_precisions, export_tflite
from mobilevit_hub.conversion.tflite import export
from mobilevit_hub.errors import (
    CheckpointError,
    ExportError,
    InputError,
    IntegrityError,
    MissingDependencyError,
    MobileViTHubError,
    MobileViTHubWarning,
    SaveError,
)
from mobilevit_hub.images.processor import MobileViTImageProcessor
from mobilevit_hub.tf.inference import phone
from mobilevit_hub.tflite.model import Model

pytestmark = [pytest.mark.export, QUIET]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def made(checkpoint):
    """The checkpoint opened, and its conversion: what comes before the steps that fail here."""
    source = export.open_for_export(checkpoint, None, {})
    options = {"input_type": "uint8", "output": "probabilities", "channel_order": "bgr"}
    return source, phone.convert_network(source.model.folded(), (64, 64), **options)


@pytest.fixture
def quick(monkeypatch, made):
    """Exports of `checkpoint` in a moment, checked on four photos."""
    photos = export.check_photos()[::8]
    monkeypatch.setattr(export, "open_for_export", lambda *_: made[0])
    monkeypatch.setattr(phone, "convert_network", lambda *_, **__: made[1])
    monkeypatch.setattr(export, "check_photos", lambda: photos)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with older exports and another file, and the folder for temporary files, empty."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    out.mkdir()
    temporary.mkdir()
    for name in ("m", "m-fp32", "m-fp16", "m-int8-dynamic", "m-int8"):
        (out / f"{name}.tflite").write_bytes(b"old " + name.encode())
        (out / f"{name}.json").write_bytes(b"{}")
    (out / "notes.txt").write_bytes(b"mine")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return out, temporary


def contents(folder):
    """Bytes of every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(error, call, *words):
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, MobileViTHubError) and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def leaves_all_as_it_was(places, error, call, *words):
    before = contents(places[0])
    found = fails(error, call, *words)
    assert contents(places[0]) == before
    assert left_over(places) == []
    return found


def left_over(places):
    """TensorFlow has a file of its own there until the process ends."""
    return [path.name for path in places[1].iterdir() if not path.name.startswith("__autograph")]


# --- files that are not as they should be ----------------------------------------------------------------------------


def test_a_file_that_differs_from_its_source_is_not_written(quick, places, monkeypatch, made):
    """Converted for the other order of channels."""
    monkeypatch.setattr(export, "open_for_export", lambda *_: dataclasses.replace(made[0], channel_order="rgb"))
    error = leaves_all_as_it_was(
        places, ExportError, lambda: export_tflite("x", places[0] / "m.tflite", overwrite=True),
        "The fp32 file differs from its source by", "allowed is 0.0001", "Nothing was written",
    )  # fmt: skip
    assert error.found > error.expected == 1e-4
    leaves_all_as_it_was(places, ExportError, lambda: export_tflite("x", places[0] / "new.tflite"), "differs")


def test_a_failed_check_on_the_command_line(quick, places, monkeypatch, capsys):
    """As JSON, and with the progress up to it, as people see it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(export.LIMITS, "fp32", ("largest", 0))
    before, arguments = contents(places[0]), [str(places[0]), str(places[0] / "m.tflite"), "--overwrite", "--json"]
    code = main(["export", *arguments])
    printed, said = capsys.readouterr()
    error = json.loads(printed)["error"]
    assert (code, error["type"]) == (1, "ExportError")
    assert said.endswith(f"mobilevit-hub: error: {error['message']}\n")
    assert "converting" in said and "checking fp32" in said and "timing" not in said
    assert contents(places[0]) == before and left_over(places) == []


def test_where_one_precision_fails_none_is_written(quick, places, monkeypatch, photos):
    """The last one: calibrated for activations that are a hundred times smaller."""
    ranges = export.activation_ranges
    monkeypatch.setattr(
        export, "activation_ranges",
        lambda *arguments: {name: (low / 100, high / 100) for name, (low, high) in ranges(*arguments).items()},
    )  # fmt: skip
    leaves_all_as_it_was(
        places, ExportError,
        lambda: export_all_precisions("x", places[0] / "m.tflite", calibration=photos, overwrite=True),
        "The int8 file differs", "calibration photos unlike those of the app",
    )  # fmt: skip


def test_a_record_that_prepares_photos_in_another_way_is_not_written(quick, places, monkeypatch):
    record = export._record

    def wrong(*arguments):
        made = record(*arguments)
        return {**made, "preprocessing": {**made["preprocessing"], "interpolation": "nearest"}}

    monkeypatch.setattr(export, "_record", wrong)
    call = functools.partial(export_tflite, "x", places[0] / "m.tflite", overwrite=True)
    leaves_all_as_it_was(places, ExportError, call, "prepares photos in another way than the checkpoint")


def test_weights_that_stayed_in_float_are_not_called_8_bit(quick, places, monkeypatch):
    monkeypatch.setattr(export, "quantize", lambda model, precision, ranges: model)
    call = functools.partial(export_tflite, "x", places[0] / "m.tflite", precision="int8-dynamic", overwrite=True)
    leaves_all_as_it_was(places, ExportError, call, "left every weight in float")


@pytest.mark.parametrize(
    ("changes", "word"), [({"partitions": 31}, "XNNPACK takes it in 31 pieces"), ({"rank": 5}, "a tensor has rank 5")]
)
def test_a_form_that_phones_run_badly_is_not_written(quick, places, monkeypatch, changes, word):
    inspect = export.inspect
    monkeypatch.setattr(export, "inspect", lambda content: dataclasses.replace(inspect(content), **changes))
    call = functools.partial(export_tflite, "x", places[0] / "m.tflite", overwrite=True)
    leaves_all_as_it_was(places, ExportError, call, word)


@pytest.mark.slow
@pytest.mark.parametrize("output_type", ["logits", "probabilities"])
def test_infinite_logits_are_no_answer(checkpoint, places, tmp_path, output_type):
    """By weights that are finite."""
    shutil.copytree(checkpoint, tmp_path / "tiny")
    tensors = load_file(tmp_path / "tiny" / "model.safetensors")
    tensors["classifier.weight"][:] = np.finfo(np.float32).max
    save_file(tensors, tmp_path / "tiny" / "model.safetensors", {"format": "pt"})
    call = functools.partial(export_tflite, tmp_path / "tiny", places[0] / "new.tflite", output_type=output_type)
    with np.errstate(all="ignore"):
        leaves_all_as_it_was(places, ExportError, call, "differs from its source by nan")


# --- disks that are full ---------------------------------------------------------------------------------------------


def test_a_full_disk_at_any_moment(quick, places, monkeypatch):
    """Each rename fails once: of the trial and its JSON, of the file and its JSON."""
    replace, failed = os.replace, 0
    for k in range(1, 20):
        calls, before = [], contents(places[0])

        def full(*arguments, k=k, calls=calls):
            calls.append(arguments)
            if len(calls) == k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            try:
                export_tflite("x", places[0] / "m.tflite", overwrite=True)
            except SaveError as error:
                failed += 1
                assert "the disk is full" in str(error) and "\n" not in str(error)
                assert contents(places[0]) == before
        assert left_over(places) == []
        if len(calls) < k:
            break
    assert failed == 4
    assert Model(places[0] / "m.tflite").record["precision"] == "fp32"


@pytest.mark.parametrize("limit", [0, 100_000])
def test_a_file_size_limit(quick, places, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SaveError, match="above the allowed file size") as caught:
            export_tflite("x", places[0] / "m.tflite", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert contents(places[0])["m.tflite"] == b"old m" and left_over(places) == []


def test_places_that_cannot_be_written(quick, places):
    for path in (places[0] / "notes.txt" / "m.tflite", places[0] / "models--a--b" / "snapshots" / "0" / "m.tflite"):
        leaves_all_as_it_was(places, SaveError, functools.partial(export_tflite, "x", path), "Cannot save")


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, None])
def test_killed_at_each_rename(places, checkpoint, k):
    """Old, new, or refused: the JSON is renamed on its own."""
    export_tflite(checkpoint, places[0] / "m.tflite", precision="fp16", overwrite=True)
    code = """
        import os, signal, sys
        from pathlib import Path
        from mobilevit_hub.conversion import export_tflite
        checkpoint, path, k = sys.argv[1:]
        calls, rename = [], os.replace
        def replace(source, target):
            rename(source, target)
            if Path(target).parent == Path(path).parent:
                calls.append(target)
                if str(len(calls)) == k:
                    os.kill(os.getpid(), signal.SIGKILL)
        os.replace = replace
        export_tflite(checkpoint, path, overwrite=True)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), checkpoint, places[0] / "m.tflite",
         str(k)], env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert process.returncode == (0 if k is None else -signal.SIGKILL)
    if k == 1:
        fails(IntegrityError, lambda: Model(places[0] / "m.tflite"), "export again")
    else:
        assert Model(places[0] / "m.tflite").record["precision"] == "fp32"


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("m", {}, "is 'm'; expected a name that ends in .tflite"),
        ("m.onnx", {}, "expected a name that ends in .tflite"),
        ("m.TFLITE", {}, "expected a name that ends in .tflite"),
        (".tflite", {}, "expected a name that ends in .tflite"),
        ("folder.tflite", {}, "is a folder; expected the name of a file"),
        ("m.tflite", {"precision": "int4"}, "precision is 'int4'; expected one of fp32, fp16, int8-dynamic, int8"),
        ("m.tflite", {"precision": None}, "precision is None"),
        ("m.tflite", {"input_type": "int8"}, "input_type is 'int8'; expected one of uint8, float32"),
        ("m.tflite", {"output_type": "scores"}, "output_type is 'scores'; expected one of probabilities, logits"),
        ("m.tflite", {"precision": "int8"}, "int8 needs photos to calibrate on"),
        ("m.tflite", {"calibration": "photos"}, "calibration is 'photos', but only the precision int8 is calibrated"),
        ("link.tflite", {"overwrite": True}, "is a link; name the file that it points to"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, name, options, words):
    """Before anything is opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "link.tflite").symlink_to(tmp_path / "elsewhere")
    fails(InputError, lambda: export_tflite("no such checkpoint", name, **options), words)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.tflite", "link.tflite"}


@pytest.mark.parametrize("there", ["m.tflite", "m.json"])
def test_nothing_is_replaced_unasked(tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    fails(InputError, lambda: export_tflite("none", tmp_path / "m.tflite"), there, "is there already", "--overwrite")
    assert contents(tmp_path) == {there: b"mine"}


@pytest.mark.parametrize("there", ["m-int8.tflite", "m-fp32.json", "m.md", "m.png"])
def test_nothing_of_all_precisions_is_replaced_unasked(tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    call = functools.partial(export_all_precisions, "none", tmp_path / "m.tflite", calibration=tmp_path)
    fails(InputError, call, there, "is there already")
    assert contents(tmp_path) == {there: b"mine"}


def test_with_overwrite_it_is_replaced(quick, places):
    found = export_tflite("x", places[0] / "m.tflite", overwrite=True)
    assert Model(found.path).record == Model(places[0] / "m.tflite").record
    assert contents(places[0])["notes.txt"] == b"mine" and left_over(places) == []


# --- checkpoints -----------------------------------------------------------------------------------------------------


def change_config(folder, **fields):
    """What is refused for its config alone."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **fields}), "utf-8")


def test_a_checkpoint_without_a_classifier(checkpoint, tmp_path):
    """Nobody gets random weights: neither where the config says so, nor where the tensors are missing."""
    change_config(shutil.copytree(checkpoint, tmp_path / "none"), id2label={}, label2id={})
    fails(InputError, lambda: export_tflite(tmp_path / "none", tmp_path / "x.tflite"), "has no classifier")
    shutil.copytree(checkpoint, tmp_path / "cut")
    tensors = load_file(tmp_path / "cut" / "model.safetensors")
    tensors = {name: value for name, value in tensors.items() if not name.startswith("classifier")}
    save_file(tensors, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    fails(CheckpointError, lambda: export_tflite(tmp_path / "cut", tmp_path / "x.tflite"), "classifier")
    assert not list(tmp_path.glob("x*"))


def test_checkpoints_that_take_no_photos(checkpoint, tmp_path):
    change_config(shutil.copytree(checkpoint, tmp_path / "grey"), num_channels=1)
    fails(InputError, lambda: export_tflite(tmp_path / "grey", tmp_path / "x.tflite"), "takes 1 channels; only photos")
    shutil.copytree(checkpoint, tmp_path / "other")
    for settings in ({"do_rescale": False}, {"do_resize": False}, {"rescale_factor": 1 / 127.5}):
        MobileViTImageProcessor(size=72, crop_size=64, **settings).save_pretrained(tmp_path / "other")
        call = functools.partial(export_tflite, tmp_path / "other", tmp_path / "x.tflite")
        fails(InputError, call, "Only checkpoints whose photos are resized and scaled to [0, 1]")


def test_photos_to_compare_on_that_cannot_be_read(quick, places, tmp_path):
    save_pictures(tmp_path / "photos", 3, ("cat", "zebra"))
    call = functools.partial(export_tflite, "x", places[0] / "m.tflite", compare=tmp_path / "photos", overwrite=True)
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.warns(MobileViTHubWarning, match="photos: 1 photos cannot be read and were left out"):
        assert call().comparison.count == 2
    for file in (tmp_path / "photos").rglob("*.png"):
        file.write_bytes(b"no picture")
    leaves_all_as_it_was(places, InputError, call, "photos: none of its photos can be read")


def test_the_probability_of_a_single_class_says_nothing(quick, places, monkeypatch, made):
    monkeypatch.setattr(export, "open_for_export", lambda *_: dataclasses.replace(made[0], labels=["cat"]))
    call = functools.partial(export_tflite, "x", places[0] / "m.tflite", overwrite=True)
    leaves_all_as_it_was(places, InputError, call, "has one label", "--output-type logits")


# --- libraries that are not installed --------------------------------------------------------------------------------


def test_where_tensorflow_is_not_installed(checkpoint, tmp_path):
    code = """
        import sys
        from mobilevit_hub.cli.main import main
        print(main(["export", sys.argv[1], sys.argv[2]]))
    """
    done = fresh_process(code, checkpoint, tmp_path / "x.tflite", hide=("tensorflow", "keras", "torch"))
    (line,) = done.stderr.splitlines()
    assert done.stdout == "1\n" and "needs tensorflow" in line and "mobilevit_hub[export]" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["ai_edge_litert", "ai_edge_quantizer", "keras", "matplotlib"])
def test_what_else_may_not_be_installed(tmp_path, monkeypatch, module):
    """Said before anything is opened."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    call = functools.partial(export_all_precisions, "none", tmp_path / "x.tflite", calibration=tmp_path)
    fails(MissingDependencyError, call, f"needs {module}, which is not installed", "mobilevit_hub[export]")
