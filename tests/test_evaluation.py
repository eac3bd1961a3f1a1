"""An evaluation against the network called by hand and scikit-learn; the same in every runtime, with any number of
processes, and after a kill at any moment."""

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from networks import MODELS, awake, tiny_config
from pictures import encode
from PIL import Image
from sklearn import metrics as sk

import mobilevit_hub as mh
from mobilevit_hub import evaluate
from mobilevit_hub.errors import CheckpointError, ImageError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.evaluation import records
from mobilevit_hub.images.processor import processor_for

pytestmark = pytest.mark.torch

LABELS = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel", 5: "fox", 6: "gnu"}
CLASSES = ["fox", "bee", "gnu", "ant"]
"""Of the data; some of the labels, in another order."""


def picture(seed):
    """Noise of a colour and brightness of its own, so that networks name several classes."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (40, 50, 3)) * rng.random(3) * rng.random() + 60 * rng.random(3)).astype(np.uint8)


def save_model(folder, version=1, seed=0):
    network = awake(MODELS[f"mobilevit{'v2' * (version == 2)}"](tiny_config(version, id2label=LABELS)), seed)
    processor = processor_for(40, 32, "bilinear", ("bgr", "rgb")[version - 1])
    with torch.no_grad():  # random weights name one class only, unless each logit is brought to the same range
        logits = network.eval()(**processor([picture(i) for i in range(90)], return_tensors="pt")).logits
        network.classifier.weight.div_(logits.std(0)[:, None])
        network.classifier.bias.sub_(logits.mean(0)).div_(logits.std(0))
    network.save_pretrained(folder, processor=processor)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / "one"), save_model(folder / "two", 2, 1)]


def save_parquet(file, count, classes=CLASSES, broken=()):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(classes))})
    contents = [encode(picture(i), "PNG") for i in range(count)]
    rows = [{"bytes": c[:90] if i in broken else c, "path": None} for i, c in enumerate(contents)]
    labels = np.random.default_rng(7).integers(len(classes), size=count).tolist()
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"image": rows, "label": labels}, features).to_parquet(file)
    known = {name: i for i, name in LABELS.items()}
    return file, contents, np.array([known.get(classes[label], -1) for label in labels])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """File, contents, and the labels in the numbers of the models."""
    return save_parquet(tmp_path_factory.mktemp("data") / "photos.parquet", 90)


def by_hand(model, contents):
    """Probabilities by transformers' way of calling a network, photo by photo."""
    network, processor = mh.from_pretrained(model), mh.image_processor(model)
    with torch.no_grad():
        logits = [network(**processor(c, return_tensors="pt")).logits[0] for c in contents]
    return torch.stack(logits).softmax(-1).numpy()


def without_time(found):
    return json.loads(json.dumps(found), object_hook=lambda d: {k: v for k, v in d.items() if k != "images_per_second"})


# --- one process ---------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_scores_are_those_of_scikit_learn(models, data, tmp_path):
    file, contents, truth = data
    found = evaluate(models, file, batch_size=16, output=tmp_path / "out", progress=False)
    named = []
    for number, (model, result) in enumerate(zip(models, found["results"], strict=True), 1):
        scores = by_hand(model, contents)
        named.append(scores.argmax(1))
        assert len(set(named[-1].tolist())) == 7
        assert result["model"] == model.name and result["runtime"] == "pt" and result["count"] == 90
        metrics = result["metrics"]
        assert metrics["top1"] == pytest.approx(sk.accuracy_score(truth, named[-1]), abs=1e-12)
        assert metrics["top5"] == pytest.approx(sk.top_k_accuracy_score(truth, scores, k=5, labels=range(7)), abs=1e-12)
        recall = sk.recall_score(truth, named[-1], labels=sorted(set(truth.tolist())), average=None, zero_division=0)
        assert metrics["mean_per_class"] == pytest.approx(recall.mean(), abs=1e-12)
        text = next((tmp_path / "out").glob(f"{number}-*per_class.csv")).read_text()
        table = list(csv.DictReader(text.splitlines()))
        assert [row["label"] for row in table] == ["ant", "bee", "fox", "gnu"]
        assert [float(row["top1"]) for row in table] == pytest.approx(recall.tolist(), abs=1e-6)
        assert [int(row["count"]) for row in table] == np.unique(truth, return_counts=True)[1].tolist()
    (pair,) = found["comparisons"]
    one, two = (n == truth for n in named)
    assert pair["agreement"] == pytest.approx((named[0] == named[1]).mean())
    assert (pair["lost"], pair["gained"]) == ((one & ~two).sum(), (two & ~one).sum())
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(found))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 90, 1000])
def test_batches_and_threads_do_not_matter(models, data, workers, batch_size):
    found = evaluate(models[0], data[0], batch_size=batch_size, workers=workers, progress=False)
    expected = by_hand(models[0], data[1])
    assert found["metrics"]["top1"] == (expected.argmax(1) == data[2]).mean()


def test_a_report_has_pages_and_plots(models, data, tmp_path):
    found = evaluate(models[0], data[0], output=tmp_path / "out", progress=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"confidence.png", "confusion.png", "per_class.csv", "results.json", "results.md", "rows-0.bin",
                     "settings.json"}  # fmt: skip
    page = (tmp_path / "out" / "results.md").read_text()
    assert f"{100 * found['metrics']['top1']:.2f} %" in page and "![confusion](confusion.png)" in page
    for name in ("confidence.png", "confusion.png"):
        colours = np.unique(np.asarray(Image.open(tmp_path / "out" / name).convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colours) > 20
    assert str(tmp_path) not in page + (tmp_path / "out" / "settings.json").read_text() + json.dumps(found)


def test_limit_is_spread_over_the_data(models, data):
    found = evaluate(models[0], data[0], limit=30, progress=False)
    expected = by_hand(models[0], data[1][::3]).argmax(1) == data[2][::3]
    assert (found["count"], found["metrics"]["top1"]) == (30, expected.mean())
    assert evaluate(models[0], data[0], limit=1000, progress=False)["count"] == 90


def test_photos_that_cannot_be_read_are_counted(models, tmp_path):
    file, contents, truth = save_parquet(tmp_path / "photos.parquet", 20, broken=(3, 4, 19))
    with pytest.warns(MobileViTHubWarning, match="3 photos cannot be read and were left out"):
        found = evaluate(models, file, batch_size=2, progress=False)
    good = [i for i in range(20) if i not in (3, 4, 19)]
    for model, result in zip(models, found["results"], strict=True):
        expected = by_hand(model, [contents[i] for i in good]).argmax(1) == truth[good]
        assert (result["count"], result["unreadable"], result["metrics"]["top1"]) == (17, 3, expected.mean())
    with pytest.raises(ImageError, match="photo 3"):
        evaluate(models, file, strict=True, progress=False)


def test_a_data_set_without_a_readable_photo(models, tmp_path):
    file, *_ = save_parquet(tmp_path / "photos.parquet", 3, broken=(0, 1, 2))
    with pytest.raises(InputError, match="none of its photos can be read"):
        evaluate(models[0], file, progress=False)


def test_weights_that_give_no_number_are_named(data, tmp_path):
    network = awake(MODELS["mobilevit"](tiny_config(1, id2label=LABELS)))
    with torch.no_grad():
        network.classifier.weight.fill_(3e38)  # finite, but the logits are not
    network.save_pretrained(tmp_path / "nan", processor=processor_for(40, 32, "bilinear", "bgr"))
    with pytest.raises(CheckpointError, match="nan: The network returned a probability that is no number"):
        evaluate(tmp_path / "nan", data[0], limit=4, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"workers": -1}, "workers is -1"),
        ({"runtime": "onnx"}, "runtime is 'onnx'"),
        ({"models": []}, "no model to evaluate"),
        ({"models": "no-such-model"}, "no-such-model"),
        ({"data": "no/such/folder"}, "no such file or folder"),
        ({"split": "test2"}, "has no|starts with|test2"),
        ({"model_index": True, "models": "mobilevit-xxs-tiny-imagenet"}, "is none that has one"),
    ],
)
def test_wrong_options(models, data, tmp_path, options, message):
    values = {"models": models[0], "data": data[0], "progress": False, **options}
    if "split" in options:
        values["data"] = tmp_path / "photos"
        (tmp_path / "photos" / "validation" / "ant").mkdir(parents=True)
        (tmp_path / "photos" / "validation" / "ant" / "0.png").write_bytes(data[1][0])
    with pytest.raises((InputError, NotFoundError), match=message) as caught:
        evaluate(values.pop("models"), values.pop("data"), **values)
    assert "\n" not in str(caught.value)


def test_classes_that_the_model_does_not_know(models, tmp_path):
    file, *_ = save_parquet(tmp_path / "photos.parquet", 3, classes=["ant", "unicorn"])
    with pytest.raises(InputError, match="has the class 'unicorn', which the model does not know"):
        evaluate(models[0], file, progress=False)


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("WORLD_SIZE", "-2"), ("RANK", "5")])
def test_wrong_environment(models, data, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=name):
        evaluate(models[0], data[0], progress=False)


# --- every runtime -------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.export
@pytest.mark.slow
def test_the_embedded_checkpoint_scores_the_same_in_every_runtime(tmp_path):
    from mobilevit_hub.conversion import export_tflite
    from mobilevit_hub.conversion.tflite.measurement import check_photos

    name = "mobilevit-xxs-tiny-imagenet"
    labels = list(mh.from_pretrained(name).config.id2label.values())
    photos = [photo[y : y + 96, x : x + 96] for photo in check_photos() for y in (0, 32) for x in (0, 32)]
    scores = mh.predict(photos, name, top_k=8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=labels)})
    rows = {
        "image": [{"bytes": encode(photo, "PNG"), "path": None} for photo in photos],
        "label": [found["predictions"][(0, 0, 3, 7)[i % 4]]["index"] for i, found in enumerate(scores)],
    }
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "photos.parquet")
    export_tflite(name, tmp_path / "xxs.tflite", progress=False)

    found = {runtime: evaluate(name, tmp_path / "photos.parquet", runtime=runtime, progress=False)
             for runtime in ("pt", "tf")}  # fmt: skip
    found["tflite"] = evaluate(tmp_path / "xxs.tflite", tmp_path / "photos.parquet", progress=False)
    for runtime, result in found.items():
        assert result["runtime"] == runtime and result["count"] == 128
        assert result["metrics"]["top1"] == pytest.approx(0.5, abs=0.001)
        assert result["metrics"]["top5"] == pytest.approx(0.75, abs=0.001)
        error = result["metrics"]["calibration_error"]
        assert error == pytest.approx(found["pt"]["metrics"]["calibration_error"], abs=0.001)
    both = evaluate([name, tmp_path / "xxs.tflite"], tmp_path / "photos.parquet", runtime="tf", progress=False)
    assert [(r["model"], r["runtime"]) for r in both["results"]] == [(name, "tf"), ("xxs.tflite", "tflite")]
    assert both["comparisons"][0]["agreement"] == 1


# --- resuming ------------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_from_whatever_is_left_of_its_rows(models, data, tmp_path, monkeypatch):
    file, out = data[0], tmp_path / "out"
    expected = without_time(evaluate(models, file, batch_size=8, output=tmp_path / "whole", progress=False))
    evaluate(models, file, batch_size=8, output=out, progress=False)
    whole = (out / "rows-0.bin").read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 40, len(whole), *rng.integers(41, len(whole), 2).tolist()):
        damaged = bytearray(whole[:length])
        if length > 1000:
            damaged[int(rng.integers(40, length))] ^= 1
        (out / "rows-0.bin").write_bytes(damaged)
        for name in ("results.json", "results.md"):
            (out / name).unlink(missing_ok=True)
        found = evaluate(models, file, batch_size=8, output=out, resume=True, progress=False)
        assert without_time(found) == expected
        assert (out / "rows-0.bin").stat().st_size == len(whole)


def test_a_finished_run_is_not_run_again(models, data, tmp_path, monkeypatch):
    expected = evaluate(models[0], data[0], output=tmp_path, progress=False)
    monkeypatch.setattr("mobilevit_hub.models.Classifier.probabilities", None)  # would fail if it were called
    found = evaluate(models[0], data[0], output=tmp_path, resume=True, progress=False)
    assert found["images_per_second"] is None and without_time(found) == without_time(expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_size": 7}, "batch_size=8"),
        ({"limit": 50}, "limit=None"),
        ({"models": "two"}, "models="),
        ({"models": ["one", "two"]}, "models="),
        ({"data": "other"}, "data="),
    ],
)
def test_a_run_is_resumed_with_its_own_settings_only(models, data, tmp_path, changes, field):
    by_name = {model.name: model for model in models}
    values = {"models": "one", "data": data[0], "batch_size": 8, "progress": False, "output": tmp_path / "out"}

    def run(**options):
        given = values | options
        names = given.pop("models")
        given_models = by_name[names] if isinstance(names, str) else [by_name[n] for n in names]
        return evaluate(given_models, given.pop("data"), **given)

    run()
    if "data" in changes:
        changes = {"data": save_parquet(tmp_path / "other.parquet", 91)[0]}
    with pytest.raises(InputError, match=f"was started with .*{field}") as caught:
        run(resume=True, **changes)
    assert "\n" not in str(caught.value)


def test_other_weights_of_the_same_name_are_other_settings(data, tmp_path):
    model = save_model(tmp_path / "model")
    evaluate(model, data[0], output=tmp_path / "out", progress=False)
    save_model(model, seed=5)
    with pytest.raises(InputError, match="was started with models="):
        evaluate(model, data[0], output=tmp_path / "out", resume=True, progress=False)


def test_an_earlier_run_is_not_overwritten_unasked(models, data, tmp_path):
    out = tmp_path / "out"
    evaluate(models[0], data[0], output=out, limit=20, progress=False)
    with pytest.raises(InputError, match="holds an earlier evaluation; continue it with --resume, replace it with"):
        evaluate(models[0], data[0], output=out, progress=False)
    assert evaluate(models[0], data[0], output=out, overwrite=True, progress=False)["count"] == 90
    with pytest.raises(InputError, match="contradict each other"):
        evaluate(models[0], data[0], output=out, overwrite=True, resume=True, progress=False)
    with pytest.raises(InputError, match="is a file"):
        evaluate(models[0], data[0], output=data[0], progress=False)


def test_resuming_nothing_begins(models, data, tmp_path):
    with pytest.warns(MobileViTHubWarning, match="holds no evaluation"):
        assert evaluate(models[0], data[0], output=tmp_path / "new", resume=True, progress=False)["count"] == 90


# --- processes -----------------------------------------------------------------------------------------------------


def start(rank, processes, *arguments):
    """One process of a run, as `accelerate launch` and `torchrun` start it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
                   "RANK": str(rank), "WORLD_SIZE": str(processes)}  # fmt: skip
    command = [sys.executable, "-m", "mobilevit_hub.cli", "evaluate", *map(str, arguments), "--json", "--workers", "1"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes):
    """Output of the first process, when all have ended well."""
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    assert [out for out, _ in outputs[1:]] == [""] * (len(outputs) - 1)
    return json.loads(outputs[0][0])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set that takes some seconds, and the whole result of one process on it."""
    folder = tmp_path_factory.mktemp("many")
    name = "mobilevit-xxs-tiny-imagenet"
    labels = list(mh.from_pretrained(name).config.id2label.values())
    file, *_ = _save_many(folder / "photos.parquet", labels)
    expected = finish([start(0, 1, name, file, "--batch-size", 3, "--output", folder / "one")])
    return [name, file, "--batch-size", "3", "--output"], expected, folder / "one"


def _save_many(file, labels, count=500):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=labels)})
    rows = {"image": [{"bytes": encode(picture(i), "PNG"), "path": None} for i in range(count)],
            "label": [i % len(labels) for i in range(count)]}  # fmt: skip
    Dataset.from_dict(rows, features).to_parquet(file)
    return file, rows


def same_rows(one, other):
    """Whether two folders hold the same rows to the bit, in whatever files."""

    def batches(folder):
        digest = next(iter(sorted(folder.glob("rows-*.bin")))).read_bytes()[8:40]
        kept = records.Records(None, digest, np.dtype(f"V{ROW}"), 1)
        for path in records.files_in(folder):
            kept._read(path)
        return {batch: rows.tobytes() for batch, rows in kept.batches.items()}

    return batches(one) == batches(other)


ROW = 4 + 4 + 5 * 4 + 5 * 4


@pytest.mark.slow
def test_two_processes_have_the_result_of_one(many, tmp_path):
    arguments, expected, folder = many
    found = finish([start(rank, 2, *arguments, tmp_path / "out") for rank in range(2)])
    assert without_time(found) == without_time(expected)
    assert same_rows(tmp_path / "out", folder)
    assert {path.name for path in (tmp_path / "out").glob("rows-*")} == {"rows-0.bin", "rows-1.bin"}


@pytest.mark.slow
def test_killed_processes_are_resumed_to_the_result_of_one(many, tmp_path, monkeypatch):
    arguments, expected, folder = many
    out, copy = tmp_path / "out", tmp_path / "copy"
    running = [start(rank, 2, *arguments, out) for rank in range(2)]
    files = [out / f"rows-{rank}.bin" for rank in range(2)]
    deadline = time.monotonic() + 600
    while not all(file.exists() and file.stat().st_size > 1500 for file in files):
        assert time.monotonic() < deadline and all(process.poll() is None for process in running)
        time.sleep(0.005)
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (out / "results.json").exists()
    with files[1].open("ab") as file:  # as if the kill had come in the middle of a record
        file.write(struct.pack("<III", 999, 144, 0) + b"half")
    shutil.copytree(out, copy)
    assert without_time(finish([start(0, 1, *arguments, out, "--resume")])) == without_time(expected)
    assert same_rows(out, folder)

    monkeypatch.setenv("WORLD_SIZE", "3")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rank in (2, 1, 0):
            monkeypatch.setenv("RANK", str(rank))
            found = evaluate(*arguments[:2], batch_size=3, output=copy, resume=True, workers=1, progress=False)
    finally:
        torch.set_num_threads(before)
    assert without_time(found) == without_time(expected)
    assert same_rows(copy, folder)


@pytest.mark.slow
def test_the_result_under_accelerate_launch(many, tmp_path):
    arguments, expected, folder = many
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
               "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "mobilevit_hub.cli", "evaluate"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments), str(tmp_path / "out"), "--json"], env=environment, capture_output=True,
        text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert without_time(json.loads(done.stdout)) == without_time(expected)
    assert same_rows(tmp_path / "out", folder)


def test_a_process_without_a_folder_is_refused(models, data, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes need a folder that they share; pass --output"):
        evaluate(models[0], data[0], progress=False)


def test_ranks_divide_the_batches(models, data, tmp_path, monkeypatch):
    """Each rank by itself, the main one last, which then needs not wait."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        found = evaluate(models[0], data[0], batch_size=4, output=tmp_path / "out", progress=False)
        assert bool(found) == (rank == 0)
    assert found["metrics"]["top1"] == (by_hand(models[0], data[1]).argmax(1) == data[2]).mean()
    sizes = [path.stat().st_size for path in records.files_in(tmp_path / "out")]
    assert len(sizes) == 3 and max(sizes) < 1.3 * min(sizes)


# --- model card ----------------------------------------------------------------------------------------------------


def test_scores_go_into_the_model_card_and_all_else_stays(data, tmp_path):
    model = save_model(tmp_path / "model")
    head = "library_name: mobilevit_hub\nlicense: mit\ntags:\n- mine\n- mobilevit\n"
    (model / "README.md").write_text(f"---\n{head}---\n\n# Title\n\nMy own words.\n")
    found = evaluate(model, data[0], model_index=True, progress=False)
    evaluate(model, data[0], limit=20, model_index=True, progress=False)
    evaluate(model, data[0], model_index=True, progress=False)
    other = save_parquet(tmp_path / "other.parquet", 12)[0]
    evaluate(model, other, model_index=True, progress=False)
    card = ModelCard((model / "README.md").read_text())
    assert card.text.rstrip().endswith("My own words.") and card.data.license == "mit"
    assert card.data.tags == ["mine", "mobilevit"] and card.data.library_name == "mobilevit_hub"
    entries = {(e.dataset_name, e.metric_name): e.metric_value for e in card.data.eval_results}
    assert len(card.data.eval_results) == 4
    assert entries["photos.parquet", "top-1"] == pytest.approx(found["metrics"]["top1"], abs=1e-6)
    assert ("other.parquet", "top-5") in entries
    assert mh.from_pretrained(model) is not None
