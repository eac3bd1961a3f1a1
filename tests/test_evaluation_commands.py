"""`mobilevit-hub evaluate`: what it prints, how it ends, and data sets of a Hub on loopback, stored and streamed."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from hub_server import serving
from test_evaluation import CLASSES, by_hand, save_model, save_parquet, without_time

from mobilevit_hub import evaluate
from mobilevit_hub.cli.main import main
from mobilevit_hub.errors import AccessError, NotFoundError, SourceError
from mobilevit_hub.evaluation import records
from mobilevit_hub.hub.imagenet import imagenet_wnids

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [save_model(folder / "one"), save_model(folder / "two", 2, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_parquet(tmp_path_factory.mktemp("data") / "validation.parquet", 40)


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "s/s]" not in line and "ba/s]" not in line and line]
    return code, captured.out, "\n".join(lines)


# --- what is printed -----------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_json_of_one_model(capsys, models, data):
    code, out, err = run(capsys, "evaluate", models[0], data[0], "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found)[:6] == ["model", "runtime", "dataset", "count", "metrics", "images_per_second"]
    expected = by_hand(models[0], data[1]).argmax(1) == data[2]
    assert (found["model"], found["runtime"], found["dataset"]) == ("one", "pt", "validation.parquet")
    assert (found["count"], found["metrics"]["top1"]) == (40, expected.mean())
    assert found["images_per_second"] > 0


def test_json_of_several_models(capsys, models, data):
    code, out, _ = run(capsys, "evaluate", *models, data[0], "--json", "--workers", "0", "--batch-size", "7")
    found = json.loads(out)
    assert code == 0 and list(found) == ["results", "comparisons"]
    assert [r["model"] for r in found["results"]] == ["one", "two"]
    assert found["comparisons"][0]["first"] == "one (pt)"


def test_percent_with_interval_for_people(capsys, models, data):
    code, out, err = run(capsys, "evaluate", *models, data[0])
    result = evaluate(models[0], data[0], progress=False)
    low, high = result["intervals"]["top1"]
    assert (code, err) == (0, "")
    assert f"  top-1  {100 * result['metrics']['top1']:.2f} % ({100 * low:.2f} to {100 * high:.2f})\n" in out
    assert "one (pt) on validation.parquet: 40 photos" in out
    assert "one (pt) and two (pt):\n  same label on " in out and "(McNemar)" in out


def test_numbers_of_others_stand_beside_the_measured_one(capsys):
    from mobilevit_hub.cli.evaluate import result_lines
    from mobilevit_hub.evaluation.benchmark_sets import BENCHMARKS, other_scores

    result = {"model": "mobilevit-s", "runtime": "pt", "dataset": "imagenet-1k", "count": 500, "unreadable": 0,
              "metrics": {"top1": 0.78, "top5": 0.94, "calibration_error": 0.1}, "whole": False,
              "intervals": {"top1": (0.74, 0.81), "top5": (0.91, 0.95)}, "images_per_second": None,
              "others": other_scores(BENCHMARKS["imagenet-1k"], "mobilevit-s")}  # fmt: skip
    lines = "\n".join(result_lines(result))
    assert "top-1  78.30 %  by Apple's model zoo (CVNets), on all photos" in lines
    assert "top-1  78.30 %, top-5 94.17 %  by timm, results/results-imagenet.csv, on all photos" in lines


def test_output_and_resume(capsys, models, data, tmp_path):
    arguments = ["evaluate", models[0], data[0], "--output", tmp_path / "out", "--json"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and (tmp_path / "out" / "confusion.png").exists()
    code, again, err = run(capsys, *arguments)
    assert code == 2 and "holds an earlier evaluation; continue it with --resume" in err and err.count("\n") == 0
    code, again, _ = run(capsys, *arguments, "--resume")
    assert code == 0 and without_time(json.loads(again)) == without_time(json.loads(out))


def test_help_has_examples_and_says_where_real_labels_come_from(capsys):
    code, out, _ = run(capsys, "evaluate", "--help")
    assert code == 0
    assert "mobilevit-hub evaluate my-model photos/" in out and "accelerate launch" in out and "real.json" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MODEL"], 2, "required"),
        (["mobilvit-s", "DATA"], 1, "Did you mean 'mobilevit-s'"),
        (["MODEL", "no/such/folder"], 1, "no such file or folder"),
        (["MODEL", "DATA", "--limit", "0"], 2, "limit is 0"),
        (["MODEL", "DATA", "--limit", "few"], 2, "invalid int value"),
        (["MODEL", "DATA", "--batch-size", "-1"], 2, "batch_size is -1"),
        (["MODEL", "DATA", "--workers", "-1"], 2, "workers is -1"),
        (["MODEL", "DATA", "--runtime", "coreml"], 2, "invalid choice"),
        (["no-such.tflite", "DATA"], 1, "no-such.tflite"),
        (["MODEL", "DATA", "--resume", "--overwrite", "--output", "OUT"], 2, "contradict each other"),
        (["MODEL", "imagenet-real:DATA"], 2, "--real-labels real.json"),
        (["MODEL", "imagenet-real:DATA", "--real-labels", "no.json"], 1, "there is no such file"),
        (["MODEL", "imagenet-1k:DATA"], 2, "needs a model with the 1000 of ImageNet-1k"),
        (["MODEL", "imagenet-v2"], 1, "get it from https://"),
        (["mobilevit-xxs-tiny-imagenet", "DATA"], 2, "has the class 'fox', which the model does not know"),
        (["mobilevit-xxs-tiny-imagenet", "DATA", "--model-index"], 2, "is none that has one"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(capsys, models, data, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": models[0], "OUT": tmp_path / "out"}
    arguments = [str(places.get(a, a)).replace("DATA", str(data[0])) for a in arguments]
    found, out, err = run(capsys, "evaluate", *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.startswith("usage:") or err.count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_broken_photo_is_counted_or_with_strict_an_error(capsys, models, tmp_path):
    file, *_ = save_parquet(tmp_path / "photos.parquet", 9, broken=(2,))
    code, out, err = run(capsys, "evaluate", models[0], file)
    assert code == 0 and "1 photos cannot be read" in out
    assert err == "mobilevit-hub: note: photos.parquet: 1 photos cannot be read and were left out."
    code, out, err = run(capsys, "evaluate", models[0], file, "--strict")
    assert (code, out) == (1, "") and "photo 2" in err and err.count("\n") == 0


# --- data sets of the Hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback with a data set of two files."""
    with serving(monkeypatch, tmp_path / "cache") as server:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        # asked elsewhere: a counter of downloads, and a service that knows the number of rows
        monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)
        parts = {}
        for i in range(2):
            file, *_ = save_parquet(tmp_path / f"part{i}.parquet", 15 + i)
            parts[f"data/validation-{i:05d}-of-00002.parquet"] = file.read_bytes()
        server.add("datasets/me/photos", {**parts, "README.md": b"# Photos\n"})
        server.contents = [c for i in range(2) for c in save_parquet(tmp_path / "again.parquet", 15 + i)[1]]
        server.truth = np.concatenate([save_parquet(tmp_path / "again.parquet", 15 + i)[2] for i in range(2)])
        yield server


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub(hub, models, streaming):
    expected = by_hand(models[0], hub.contents).argmax(1) == hub.truth
    found = evaluate(models[0], "me/photos", streaming=streaming, batch_size=4, progress=False)
    assert (found["dataset"], found["count"]) == ("me/photos", 31)
    assert found["metrics"]["top1"] == expected.mean()


def test_a_stream_is_read_by_several_processes_and_resumed(hub, models, tmp_path, monkeypatch):
    expected = by_hand(models[0], hub.contents).argmax(1) == hub.truth
    options = {"streaming": True, "batch_size": 4, "output": tmp_path / "out", "progress": False}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluate(models[0], "me/photos", **options) == {}
    monkeypatch.setenv("RANK", "0")
    found = evaluate(models[0], "me/photos", **options)
    assert (found["count"], found["metrics"]["top1"]) == (31, expected.mean())
    file = tmp_path / "out" / "rows-0.bin"
    file.write_bytes(file.read_bytes()[:300])
    monkeypatch.setenv("WORLD_SIZE", "1")
    again = evaluate(models[0], "me/photos", resume=True, **options)
    assert without_time(again) == without_time(found)


def test_the_first_photos_of_a_stream(hub, models):
    expected = by_hand(models[0], hub.contents[:18]).argmax(1) == hub.truth[:18]
    found = evaluate(models[0], "me/photos", streaming=True, limit=18, batch_size=4, progress=False)
    assert (found["count"], found["metrics"]["top1"]) == (18, expected.mean())


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_hub_does_not_have(hub, models, streaming):
    options = {"streaming": streaming, "progress": False}
    with pytest.raises(NotFoundError, match="No data set 'me/none': it is neither a folder here nor reachable"):
        evaluate(models[0], "me/none", **options)
    with pytest.raises(NotFoundError, match=r"has the splits \['validation'\]; expected 'train'"):
        evaluate(models[0], "me/photos", split="train", **options)


def test_a_gated_data_set_says_what_to_do(hub, models):
    hub.add("datasets/me/gated", {"README.md": b"# Gated\n"})  # of photos there may be a stored copy
    hub.faults["README.md"] = "gated"
    with pytest.raises(AccessError, match="accept its terms on https://huggingface.co/datasets/me/gated, then run"):
        evaluate(models[0], "me/gated", progress=False)


def test_a_hub_that_goes_away_leaves_a_run_that_can_be_resumed(hub, models, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    options = {"streaming": True, "batch_size": 2, "output": tmp_path / "out", "progress": False, "workers": 0}
    add = records.Records.add

    def then_fail(self, *batch):
        hub.faults["data/validation-00001-of-00002.parquet"] = 404
        add(self, *batch)

    monkeypatch.setattr(records.Records, "add", then_fail)
    with pytest.raises(SourceError, match="Reading the data set 'me/photos' failed"):
        evaluate(models[0], "me/photos", **options)
    assert (tmp_path / "out" / "rows-0.bin").stat().st_size > 300
    monkeypatch.setattr(records.Records, "add", add)
    hub.faults.clear()
    found = evaluate(models[0], "me/photos", resume=True, **options)
    assert found["count"] == 31


def test_imagenet_r_as_the_hub_has_it(hub, tmp_path, monkeypatch):
    """A split called test, text columns, no class labels; the classes are those of the record."""
    from networks import MODELS, awake, tiny_config
    from test_benchmark_sets import photo, probabilities

    from mobilevit_hub.hub.imagenet import imagenet_labels, imagenet_subset
    from mobilevit_hub.images.processor import processor_for

    network = awake(MODELS["mobilevit"](tiny_config(1, num_labels=1000, id2label=dict(enumerate(imagenet_labels())))))
    network.save_pretrained(tmp_path / "tiny-1k", processor=processor_for(72, 64, "bilinear", "bgr"))
    contents, subset = [photo(i) for i in range(10)], np.array(imagenet_subset("imagenet_r"))
    named = subset[probabilities(tmp_path / "tiny-1k", contents)[:, subset].argmax(1)]
    truth = [int(named[i]) if i % 2 else int(subset[i]) for i in range(10)]
    columns = {"image": [{"bytes": c, "path": None} for c in contents], "wnid": [imagenet_wnids()[t] for t in truth]}
    features = datasets.Features({"image": datasets.Image(), "wnid": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "test.parquet")
    hub.add(
        "datasets/axiong/imagenet-r", {"data/test-00000-of-00001.parquet": (tmp_path / "test.parquet").read_bytes()}
    )
    found = evaluate(tmp_path / "tiny-1k", "imagenet-r", progress=False)
    assert (found["dataset"], found["count"]) == ("imagenet-r", 10)
    assert found["metrics"]["top1"] == np.mean(named == truth) >= 0.5


# --- without a framework -------------------------------------------------------------------------------------------


def test_a_wrong_name_is_refused_before_a_framework_is_loaded():
    code = (
        "import sys\nfrom mobilevit_hub.cli.main import main\nprint(main(['evaluate', 'mobilvit-s', 'x']))\n"
        "print([n for n in ('torch', 'tensorflow', 'datasets', 'evaluate', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n[]\n"
    assert "Did you mean 'mobilevit-s'" in done.stderr


def test_classes_of_the_data_are_some_of_the_labels():
    assert sorted(CLASSES) != CLASSES  # so that a mapping by position would be noticed
