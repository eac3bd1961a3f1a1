"""The verb export, and predict on what it wrote: what they print where, and how they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from keras_networks import QUIET, keras
from pictures import encode

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

from test_tflite_export import save_checkpoint, save_photos, save_pictures

import mobilevit_hub as mh
from mobilevit_hub import conversion
from mobilevit_hub.cli.main import main
from mobilevit_hub.conversion.tflite import export
from mobilevit_hub.conversion.tflite.measurement import check_photos
from mobilevit_hub.tflite.model import Model

pytestmark = [pytest.mark.export, QUIET]
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(autouse=True)
def _eight_photos(monkeypatch):
    """Each check with a quarter of the built-in photos."""
    photos = check_photos()[::4]
    monkeypatch.setattr(export, "check_photos", lambda: photos)


@pytest.fixture
def run(capsys):
    """Runs the command; returns exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def one_line(said):
    assert said.count("\n") == 1 and said.startswith("mobilevit-hub: error: ")
    return said


def rows_of(printed):
    """The lines of a report: name, and what it says."""
    return [(line[:11].strip(), line[13:]) for line in printed.splitlines()]


def test_export_says_what_it_wrote(run, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where progress is shown unless one says --quiet
    arguments = ["--precision", "int8", "--calibration", photos, "--compare", photos, "--quiet"]
    code, printed, said = run("export", checkpoint, tmp_path / "m.tflite", *arguments)
    assert (code, said) == (0, "")
    *lines, wrote = printed.splitlines()
    assert wrote == f"wrote {tmp_path / 'm.tflite'}, {tmp_path / 'm.json'}"
    content, found = (tmp_path / "m.tflite").read_bytes(), json.loads((tmp_path / "m.json").read_bytes())
    rows, report = rows_of("\n".join(lines)), found["report"]
    assert [name for name, _ in rows] == [
        "input", "photo", "output", "size", "operations", "XNNPACK", "GPU", "difference", "latency", "latency", "still float",
        "calibration", "top-1", "agreement",
    ]  # fmt: skip
    texts = dict(rows)
    assert texts["input"] == "image 1×64×64×3 uint8, RGB, 0 to 255"
    assert texts["photo"] == "resize to short side 72, bilinear, then centre crop 64×64; the app does this"
    assert texts["output"] == "probabilities 1×7, 7 labels"
    assert texts["size"] == f"{len(content) / 1e6:.2f} MB, {report['share_of_fp32']:.0%} of fp32"
    assert texts["operations"].startswith(f"{report['operation_count']}: ")
    assert f"{report['operations']['CONV_2D']} CONV_2D" in texts["operations"]
    assert texts["XNNPACK"].endswith("in 1 partition; left out: 1 CAST")
    assert texts["GPU"] == "; ".join(report["gpu"]["obstacles"]) and "use fp16" in texts["GPU"]
    assert "RSQRT" in texts["still float"]
    assert texts["calibration"] == f"120 photos of {photos.name}"
    assert f"on 24 photos of {photos.name}" in texts["top-1"]
    assert f"{report['comparison']['lost']} photos lost" in texts["agreement"]
    assert [text.rpartition(" on ")[2].partition(" of ")[0] for name, text in rows if name == "latency"] == [
        "1 thread", "2 threads"
    ]  # fmt: skip


def test_export_as_json_then_predict(run, checkpoint, tmp_path):
    """The file names the class that Keras names."""
    code, printed, _ = run("export", checkpoint, tmp_path / "m.tflite", "--json", "--output-type", "logits")
    found, sidecar = json.loads(printed), json.loads((tmp_path / "m.json").read_bytes())
    assert code == 0
    assert found == {
        "path": str(tmp_path / "m.tflite"),
        **{name: value for name, value in sidecar.items() if name not in ("file", "bytes", "sha256")},
    }
    assert (found["precision"], found["calibration"], found["output"]["name"]) == ("fp32", None, "logits")

    files = [tmp_path / f"{i}.png" for i in range(4)]
    for file, photo in zip(files, check_photos()[::8], strict=True):
        file.write_bytes(encode(photo, "PNG"))
    code, printed, said = run("predict", *files, "--model", tmp_path / "m.tflite", "--json", "--top", 7)
    assert (code, said) == (0, "")
    named = [{p["index"]: p["score"] for p in result["predictions"]} for result in json.loads(printed)]
    for result, scores in zip(mh.predict(files, model=checkpoint, runtime="tf", top_k=7), named, strict=True):
        assert scores == pytest.approx({p["index"]: p["score"] for p in result["predictions"]}, abs=1e-5)
        assert next(iter(scores)) == result["predictions"][0]["index"]


def test_all_precisions_are_one_table(run, checkpoint, photos, tmp_path, monkeypatch):
    made = []

    def once(*arguments, export=conversion.export_all_precisions, **options):
        made.append(made[0] if made else export(*arguments, **options))
        return made[0]

    monkeypatch.setattr(conversion, "export_all_precisions", once)
    arguments = ["export", checkpoint, tmp_path / "m.tflite", "--all-precisions", "--calibration", photos]
    code, printed, _ = run(*arguments, "--resolution", 48)
    assert code == 0
    head, *rows, wrote = printed.splitlines()
    assert head.split()[0] == "precision" and "top-1" not in head
    assert [row.split()[0] for row in rows] == list(PRECISIONS)
    assert all("in 1" in row and " of 8" in row for row in rows)
    assert wrote.startswith("wrote ")
    assert set(map(Path, wrote[6:].split(", "))) == set(tmp_path.iterdir()) and len(set(tmp_path.iterdir())) == 10
    models = [Model(tmp_path / f"m-{name}.tflite") for name in PRECISIONS]
    assert [(model.record["precision"], model.size) for model in models] == [(name, (48, 48)) for name in PRECISIONS]

    code, printed, _ = run(*arguments, "--json")
    found = json.loads(printed)
    assert code == 0 and [entry["precision"] for entry in found] == list(PRECISIONS)
    assert [entry["path"] for entry in found] == [str(model.path) for model in models]
    assert all(entry["preprocessing"]["resize"] == {"shortest_edge": 54} for entry in found)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["m.onnx"], 2, "ends in .tflite"),
        (["m.tflite", "--precision", "int8"], 2, "--calibration FOLDER"),
        (["m.tflite", "--all-precisions"], 2, "--calibration FOLDER"),
        (["m.tflite", "--resolution", "31"], 2, "resolution is 31"),
        (["m.tflite", "--precision", "int8", "--calibration", "few"], 2, "has 3 photos to calibrate on"),
        (["m.tflite", "--precision", "int8", "--calibration", "./none"], 1, "No data set at './none'"),
        (["m.tflite", "--compare", "few"], 2, "has the class 'unicorn'"),
    ],
)
def test_what_cannot_be_exported(run, checkpoint, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "few", 3, ("unicorn",))
    found, printed, said = run("export", checkpoint, *arguments)
    assert (found, printed) == (code, "") and words in one_line(said)
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


@pytest.mark.parametrize("name", ["mobilvit-s", "no/such/folder"])
def test_names_that_are_none(run, tmp_path, name):
    code, printed, said = run("export", name, tmp_path / "m.tflite")
    assert (code, printed) == (1, "") and name in one_line(said)


def test_a_precision_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "mobilevit-s", "m.tflite", "--precision", "int4"])
    assert ended.value.code == 2 and "int8-dynamic" in capsys.readouterr().err


def test_one_precision_or_all(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "mobilevit-s", "m.tflite", "--precision", "fp16", "--all-precisions"])
    assert ended.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    printed, said = capsys.readouterr()
    assert (ended.value.code, said) == (0, "")
    assert "mobilevit-hub export " in printed.partition("examples:")[2]
