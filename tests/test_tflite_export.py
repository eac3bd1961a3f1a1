"""Export from end to end: a tiny checkpoint to files that hold what they say, measured as a person would recount it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from keras_networks import QUIET, keras, run, tiny
from pictures import encode
from PIL import Image

pytest.importorskip("tensorflow")
pytest.importorskip("ai_edge_litert")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the conversion needs Keras on TensorFlow", allow_module_level=True)

import mobilevit_hub as mh
from mobilevit_hub.conversion import export_all_precisions, export_tflite
from mobilevit_hub.conversion.tflite import export
from mobilevit_hub.conversion.tflite.inputs import calibration_photos, open_for_export, open_unlabelled
from mobilevit_hub.conversion.tflite.measurement import check_photos, mcnemar, wilson_interval
from mobilevit_hub.conversion.tflite.report import report_lines
from mobilevit_hub.errors import InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.images.loading import image_files
from mobilevit_hub.images.processor import MobileViTImageProcessor, processor_for
from mobilevit_hub.tflite.model import Model

pytestmark = [pytest.mark.export, QUIET]
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8")
LABELS = ["cat", "dog, hound", "café\u2028au lait", "crane", "水", "crane", "zebra"]
COMPARED = ("zebra", "dog, hound", "水")
FACTS = ["file", "bytes", "sha256", "report"]


def save_checkpoint(folder, version, processor=None, **fields):
    """A tiny checkpoint with labels that are hard to write down; it names the classes of `save_photos` in turns."""
    model = tiny(version, **{"id2label": dict(enumerate(LABELS)), "num_labels": None, **fields})
    pixels = np.stack(check_photos())[:, ::2, ::2, ::-1].astype(np.float32) / np.float32(255)
    bias = model.named_weights()["classifier.bias"].variable
    bias.assign(bias.numpy() - run(model, pixels).mean(0) + [2.0 if label in COMPARED else -1.5 for label in LABELS])
    model.save_pretrained(folder, processor=processor or processor_for(72, 64, "bilinear", "bgr"))
    return folder


@functools.cache
def pictures(count):
    """Pairs of real photos laid over each other, as PNG."""
    photos, rng = check_photos(), np.random.default_rng(0)
    pairs = [rng.choice(32, 2, replace=False) for _ in range(count)]
    return [encode(photos[a][:80, :96] // 2 + photos[b][:80, -96:] // 2, "PNG") for a, b in pairs]


def save_pictures(folder, count, classes=("",)):
    """Writes pictures, in turns into the folders of classes."""
    for i, content in enumerate(pictures(count)):
        file = folder / classes[i % len(classes)] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def save_photos(folder):
    """120 pictures to calibrate on and 24, of three of the classes, to compare on."""
    save_pictures(folder / "train", 120, ("a", "b"))
    save_pictures(folder / "validation", 24, COMPARED)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "my tiny", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def source(checkpoint):
    return open_for_export(checkpoint, None, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def exports(checkpoint, photos, folder):
    """All precisions, with everything measured; checked on a quarter of the built-in photos."""
    few = check_photos()[::4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "check_photos", lambda: few)
        return export_all_precisions(checkpoint, folder / "t.tflite", calibration=photos, compare=photos)


@pytest.fixture(scope="module")
def other(photos, folder, tmp_path_factory):
    """The other version, type of input, output, channel order and size, calibrated as well."""
    name = save_checkpoint(tmp_path_factory.mktemp("other"), 2, processor_for(80, 64, "bicubic", "rgb"))
    return export_tflite(
        name, folder / "o.tflite", precision="int8", resolution=96, input_type="float32", output_type="logits",
        calibration=save_pictures(folder / "flat", 110),
    )  # fmt: skip


def sidecar(made):
    return json.loads(Path(made.path).with_suffix(".json").read_bytes())


# --- files -----------------------------------------------------------------------------------------------------------


def test_which_files_are_written(exports, folder):
    names = {f"t-{precision}.{ending}" for precision in PRECISIONS for ending in ("tflite", "json")}
    assert {path.name for path in folder.glob("t*")} == names | {"t.md", "t.png"}
    assert not list(folder.glob(".*"))
    assert [made.precision for made in exports] == list(PRECISIONS)
    assert [made.path for made in exports] == [str(folder / f"t-{precision}.tflite") for precision in PRECISIONS]


def test_the_sidecar_describes_the_file(exports, folder):
    for made in exports:
        content = (folder / f"t-{made.precision}.tflite").read_bytes()
        said = sidecar(made)
        assert [said[name] for name in FACTS[:3]] == [
            f"t-{made.precision}.tflite", len(content), hashlib.sha256(content).hexdigest()
        ]  # fmt: skip
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            record = json.loads(archive.read("mobilevit_hub.json"))
        assert record == {name: value for name, value in said.items() if name not in FACTS} == made.record
        assert said["report"] == json.loads(json.dumps(made.report()))
        assert said["report"]["bytes"] == len(content)
        assert str(folder.parent) not in json.dumps(said) and str(folder.parent).encode() not in content


def test_the_record(exports, checkpoint):
    labels = "".join(f"{label}\n" for label in LABELS).replace("\u2028", " ").encode()
    for made in exports:
        record = dict(made.record)
        calibration = record.pop("calibration")
        assert (calibration is None) == (made.precision != "int8")
        assert record == {
            "format": 1, "package": f"mobilevit_hub {mh.__version__}", "name": "my tiny", "model_type": "mobilevit",
            "precision": made.precision,
            "input": {"name": "image", "shape": [1, 64, 64, 3], "dtype": "uint8", "range": [0, 255], "channels": "rgb"},
            "output": {"name": "probabilities", "shape": [1, 7], "dtype": "float32"},
            "preprocessing": {"resize": {"shortest_edge": 72}, "crop": {"height": 64, "width": 64},
                              "interpolation": "bilinear"},
            "labels": {"count": 7, "sha256": hashlib.sha256(labels).hexdigest()},
            "source": {"file": "model.safetensors", "channel_order": "bgr",
                       "sha256": hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()},
        }  # fmt: skip


def test_files_run_and_name_classes_as_the_checkpoint_does(exports):
    for made in exports:
        model = Model(made.path)
        assert model.labels == [label.replace("\u2028", " ") for label in LABELS]
        (best,) = model(check_photos()[3], top_k=1)
        assert best["label"] == model.labels[best["index"]] and best["score"] > 1 / 7


def test_precisions_differ_as_they_should(exports):
    sizes = {made.precision: made.inspection.size for made in exports}
    assert max(sizes["int8"], sizes["int8-dynamic"]) < sizes["fp16"] < sizes["fp32"]
    found = {made.precision: made.difference for made in exports}
    assert found["fp32"].largest < 1e-4 < found["fp16"].largest
    assert found["fp16"].error < 1e-2 < found["int8-dynamic"].error < found["int8"].error < 0.5
    for made in exports:
        assert made.float_size == pytest.approx(sizes["fp32"], rel=0.02)
        assert [entry.threads for entry in made.latencies] == [1, 2]
        assert (made.inspection.partitions, made.inspection.not_delegated) == (1, {"CAST": 1})


def test_another_type_order_size_and_output(other, folder):
    record = other.record
    assert record["input"] == {
        "name": "image", "shape": [1, 96, 96, 3], "dtype": "float32", "range": [0, 1], "channels": "rgb"
    }  # fmt: skip
    assert record["output"]["name"] == "logits" and record["source"]["channel_order"] == "rgb"
    assert record["preprocessing"] == {
        "resize": {"shortest_edge": 120}, "crop": {"height": 96, "width": 96}, "interpolation": "bicubic"
    }  # fmt: skip
    assert (record["calibration"]["source"], record["calibration"]["images"]) == ("flat", 110)
    assert other.inspection.not_delegated == {} and other.inspection.partitions == 1
    model = Model(folder / "o.tflite")
    assert (model.size, model.dtype, model.output) == ((96, 96), "float32", "logits")
    assert model.run(model.prepare(check_photos()[0])).min() < 0


# --- resolution ------------------------------------------------------------------------------------------------------


def prepared_as(**settings):
    from mobilevit_hub.conversion.tflite.inputs import _preprocessing

    resolution = settings.pop("resolution", None)
    found = _preprocessing(MobileViTImageProcessor(**settings), resolution)
    return found["resize"], found["crop"]


def test_the_border_around_the_crop_keeps_its_share():
    square = {"height": 256, "width": 256}
    assert prepared_as(size=288, crop_size=256) == ({"shortest_edge": 288}, square)
    assert prepared_as(size=288, crop_size=256, resolution=256) == ({"shortest_edge": 288}, square)
    assert prepared_as(size=288, crop_size=256, resolution=192) == (
        {"shortest_edge": 216}, {"height": 192, "width": 192}
    )  # fmt: skip
    assert prepared_as(size={"height": 300, "width": 600}, crop_size={"height": 256, "width": 512}, resolution=128) == (
        {"height": 75, "width": 150}, {"height": 64, "width": 128}
    )  # fmt: skip
    assert prepared_as(size=288, do_center_crop=False, resolution=64) == (
        {"shortest_edge": 64}, {"height": 64, "width": 64}
    )  # fmt: skip


def test_a_resize_beyond_what_can_be_resized():
    with pytest.raises(InputError, match="At resolution 512 photos would be resized to 6000 pixels; the limit is 4096"):
        prepared_as(size=3000, crop_size=256, resolution=512)


@pytest.mark.parametrize("resolution", [0, 31, 1025, -64, 64.0, "64", True])
def test_a_resolution_that_no_network_takes(checkpoint, tmp_path, resolution):
    with pytest.raises(InputError, match=rf"resolution is {resolution!r}; expected a whole number of pixels from 32"):
        export_tflite(checkpoint, tmp_path / "x.tflite", resolution=resolution)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_what_is_recorded_of_the_calibration(exports, photos):
    """Photos of `train/` only, prepared as the file's own runtime prepares them."""
    said = exports[3].record["calibration"]
    model, digest = Model(exports[0].path), hashlib.sha256()
    files = image_files(photos / "train")
    for i in np.random.default_rng(0).permutation(len(files)):
        digest.update(model.prepare(files[i]).tobytes())
    assert said == {"source": photos.name, "images": 120, "sha256": digest.hexdigest()}


def test_calibration_on_floats_sees_what_the_file_takes(other, folder):
    model, digest = Model(other.path), hashlib.sha256()
    files = image_files(folder / "flat")
    for i in np.random.default_rng(0).permutation(len(files)):
        digest.update(model.prepare(files[i]).tobytes())
    assert other.record["calibration"]["sha256"] == digest.hexdigest()


def calibrated(data, source):
    return calibration_photos(open_unlabelled(str(data)), str(data), source, "uint8", False)


def test_two_hundred_photos_are_drawn_the_same_each_time(source, tmp_path):
    save_pictures(tmp_path / "many", 210)
    prepared, said = calibrated(tmp_path / "many", source)
    assert len(prepared) == said["images"] == 200
    assert {(pixels.shape, pixels.dtype) for pixels in prepared} == {((1, 64, 64, 3), np.dtype("uint8"))}
    assert calibrated(tmp_path / "many", source)[1] == said
    (tmp_path / "many" / "5.png").write_bytes(encode(255 - np.asarray(Image.open(tmp_path / "many" / "5.png")), "PNG"))
    assert calibrated(tmp_path / "many", source)[1]["sha256"] != said["sha256"]


def test_parquet_files_do_as_well(source, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": content, "path": None} for content in pictures(100)], "label": [0, 1] * 50}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(rows, features=features)
    for name in ("train-0.parquet", "validation.parquet"):
        data.to_parquet(tmp_path / name)
        _, said = calibrated(tmp_path, source)
        assert (said["source"], said["images"]) == (tmp_path.name, 100)
        (tmp_path / name).unlink()


def test_a_class_may_be_called_train(source, tmp_path):
    save_pictures(tmp_path / "photos", 102, ("train", "bus", "tram"))
    assert calibrated(tmp_path / "photos", source)[1]["images"] == 102
    (tmp_path / "photos" / "val").mkdir()
    with pytest.raises(InputError, match="has 34 photos to calibrate on"):
        calibrated(tmp_path / "photos", source)


def test_photos_that_cannot_be_read_are_left_out(source, tmp_path):
    save_pictures(tmp_path / "some", 101)
    for name in ("cut.png", "text.jpg"):
        (tmp_path / "some" / name).write_bytes(pictures(1)[0][:200])
    with pytest.warns(MobileViTHubWarning, match="some: 2 photos cannot be read and were left out"):
        _, said = calibrated(tmp_path / "some", source)
    assert said["images"] == 101
    for i in range(2):
        (tmp_path / "some" / f"{i}.png").unlink()
    with pytest.raises(InputError, match=r"has 99 photos to calibrate on \(2 more cannot be read\); expected 100"):
        calibrated(tmp_path / "some", source)


def test_too_few_photos_are_refused(source, tmp_path):
    (tmp_path / "empty").mkdir()
    save_pictures(tmp_path / "few", 99)
    for name, count in (("empty", 0), ("few", 99)):
        with pytest.raises(InputError, match=f"{name}: has {count} photos to calibrate on; expected 100 or more"):
            calibrated(tmp_path / name, source)
    with pytest.raises(NotFoundError, match="no such file or folder"):
        calibrated(tmp_path / "none", source)


# --- comparison ------------------------------------------------------------------------------------------------------


def test_the_comparison_is_what_a_recount_gives(exports, checkpoint, photos):
    """By the trainable model and the processor of the checkpoint; classes are numbered as in the checkpoint."""
    network, processor = mh.from_pretrained(checkpoint, framework="tf"), mh.image_processor(checkpoint)
    files = image_files(photos / "validation")
    truth = np.array([LABELS.index(file.parent.name) for file in files])
    pixels = [processor(file, return_tensors="np", data_format="channels_last")["pixel_values"] for file in files]
    wanted = run(network, np.concatenate(pixels)).argmax(1)
    assert set(truth) == {6, 1, 4} and len(set(wanted)) > 1
    for made in exports:
        model, found = Model(made.path), made.comparison
        best = np.array([model.run(model.prepare(file)).argmax() for file in files])
        lost, gained = ((wanted == truth) & (best != truth)).sum(), ((wanted != truth) & (best == truth)).sum()
        assert (found.count, found.dataset, found.lost, found.gained) == (24, photos.name, lost, gained)
        assert (found.source_top1, found.top1) == pytest.approx(((wanted == truth).mean(), (best == truth).mean()))
        assert found.agreement == pytest.approx((best == wanted).mean())
        assert found.interval == wilson_interval(int((best == truth).sum()), 24)
        assert found.p_value == mcnemar(lost, gained)
    assert exports[0].comparison.agreement == 1 > exports[3].comparison.agreement


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        ("unicorn", "has the class 'unicorn', which the model does not know; it has 7 labels such as 'cat'"),
        ("crane", "has the class 'crane', but several labels of the model have that name"),
    ],
)
def test_a_class_that_is_none_of_the_checkpoint(source, tmp_path, monkeypatch, strange, words):
    monkeypatch.setattr(export, "open_for_export", lambda *_: source)
    save_pictures(tmp_path / "photos", 4, ("cat", strange))
    with pytest.raises(InputError, match=words):
        export_tflite("x", tmp_path / "x.tflite", compare=tmp_path / "photos")
    assert not list(tmp_path.glob("x*"))


def test_all_precisions_in_a_table_and_a_plot(exports, folder):
    title, empty, said, *rows = (folder / "t.md").read_text("utf-8").splitlines()
    assert (title, empty) == ("# my tiny as .tflite", "")
    assert said.startswith("Input 1×64×64×3 uint8; times on ") and "on 24 photos" in said
    head, line, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")]
    assert head[0] == "precision" and head[-3:] == ["top-1", "95 % interval", "McNemar p"] and set(line) == {"---"}
    for row, made in zip(rows, exports, strict=True):
        assert len(row) == len(head)
        assert row[0] == made.precision
        assert row[1].startswith(f"{made.inspection.size / 1e6:.2f} MB (")
        assert row[2] == f"{made.latencies[0].median:.1f} ms"
        assert row[head.index("top-1")] == f"{made.comparison.top1:.2%}"
    assert [row[head.index("GPU")] for row in rows] == ["fits", "fits", "use fp16", "use fp16"]
    with Image.open(folder / "t.png") as plot:
        plot.load()
        assert plot.format == "PNG" and plot.width > 600 and plot.height > 400
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 50


def test_sizes_are_told_as_width_and_height(exports):
    steps = {"resize": {"height": 75, "width": 150}, "crop": {"height": 64, "width": 128}, "interpolation": "bicubic"}
    made = replace(exports[0], record={**exports[0].record, "preprocessing": steps})
    (line,) = [line for line in report_lines(made) if line.startswith("photo")]
    assert line.endswith("resize to 150×75, bicubic, then centre crop 128×64; the app does this")
