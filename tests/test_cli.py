"""The command: what it prints where, how it ends, and what it never does."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from networks import MODELS, awake, tiny, tiny_config
from pictures import encode, noise, smooth
from PIL import Image
from shapes import save_shapes

import mobilevit_hub as mh
from mobilevit_hub.cli.main import main
from mobilevit_hub.hub.presets import get_preset, list_presets
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.network.configuration import MobileViTConfig

pytestmark = pytest.mark.torch

LABELS = {0: "cat", 1: "dog, hound", 2: "café", 3: "crane", 4: "水"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small checkpoint of five named classes, in BGR order."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = awake(MODELS["mobilevit"](tiny_config(1, num_labels=5, id2label=LABELS)))
    network.save_pretrained(folder, processor=processor_for(72, 64, "bilinear", "bgr"))
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "b.png").write_bytes(encode(noise(80, 90), "PNG"))
    (folder / "a.JPG").write_bytes(encode(smooth(70, 100), "JPEG"))
    (folder / "more" / "c.webp").write_bytes(encode(smooth(90, 70), "WEBP"))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def broken(tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_bytes(encode(noise(), "JPEG")[:200])
    return file


def run(capsys, *arguments):
    """Exit code, stdout and stderr of the command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(*arguments, **options):
    """The command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options.pop("env", {})}
    command = [sys.executable, "-m", "mobilevit_hub.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    )


def one_line(text):
    assert text.count("\n") == 1 and text.endswith("\n") and len(text) <= 301
    return text


# --- help, usage, unknown names ------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "tensorflow", "datasets", "evaluate", "matplotlib", "PIL", "numpy")


@pytest.mark.alone
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["list"],
                                       ["info", "mobilevit-s"], ["info", "mobilvit-s"],
                                       ["predict", "x.jpg", "--model", "mobilvit-s"],
                                       ["train", "x", "--output", "o", "--model", "mobilvit-s"],
                                       ["convert", "--help"], ["push", "--help"], ["convert", "mobilvit-s", "out"],
                                       ["verify", "mobilvit-s"]])  # fmt: skip
def test_answers_without_a_framework(arguments):
    code = (
        "import sys\nfrom mobilevit_hub.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert process.stderr.endswith("LOADED []\n")
    assert process.stdout or "Did you mean 'mobilevit-s'" in process.stderr


@pytest.mark.parametrize("verb", ["list", "info", "predict", "train"])
def test_help_of_each_verb_has_an_example(capsys, verb):
    code, out, err = run(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert f"mobilevit-hub {verb}" in out.partition("examples:")[2]


def test_no_verb_prints_the_help(capsys):
    code, out, _ = run(capsys)
    assert code == 2
    assert all(verb in out for verb in ("list", "info", "predict", "train"))


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"mobilevit-hub {mh.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["predict"],
        ["predict", "a.jpg", "--top", "many"],
        ["predict", "a.jpg", "--no-such-option"],
        ["train", "photos"],
        ["train", "photos", "--output", "o", "--recipe", "mobilenet"],
        ["list", "--task", "juggling"],
    ],
)
def test_wrong_usage_ends_with_2(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "mobilevit-hub" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], "epochs is 0; expected an integer from 1 to 10000"),
        (["--size-schedule", "64x8"], "Size schedule '64x8'"),
        (["--size-schedule", "64:8", "--epochs", "3"], "size_schedule is '64:8' and epochs is 3; give one of the two"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--save-steps", "0"], "save_steps is 0; expected at least 1"),
    ],
)
def test_wrong_recipe_ends_with_2_before_anything_is_written(capsys, tmp_path, arguments, words):
    code, out, err = run(capsys, "train", tmp_path, "--output", tmp_path / "o", *arguments)
    assert (code, out) == (2, "")
    assert words in one_line(err)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("verb", [["info"], ["predict", "a.jpg", "--model"]])
def test_unknown_name_is_one_line_with_suggestions(capsys, verb):
    code, out, err = run(capsys, *verb, "mobilvit-s")
    assert (code, out) == (1, "")
    assert one_line(err).startswith("mobilevit-hub: error: Unknown checkpoint 'mobilvit-s'. Did you mean 'mobilevit-s'")


def test_unknown_name_as_json(capsys):
    code, out, err = run(capsys, "info", "mobilvit-s", "--json")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "NotFoundError"
    one_line(err)


def test_missing_folder_is_one_line(capsys, tmp_path):
    code, out, err = run(capsys, "predict", "a.jpg", "--model", tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert "There is no folder" in one_line(err)


def test_debug_shows_the_traceback():
    process = start("info", "mobilvit-s", "--debug")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1 and not out
    assert b"Traceback" in err and b"Unknown checkpoint 'mobilvit-s'" in err


# --- list and info -------------------------------------------------------------------------------------------------


def test_list_shows_every_preset_in_columns(capsys):
    code, out, err = run(capsys, "list")
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert [row.split()[0] for row in rows] == [preset.name for preset in list_presets()]
    start = head.index("params")
    assert all(row[start - 2 : start] == "  " for row in rows)
    row = next(row for row in rows if row.startswith("mobilevit-s "))
    assert all(part in row for part in ("imagenet-1k", "5.58 M", "78.3 top1", "256", "yes"))


def test_list_as_json(capsys):
    code, out, _ = run(capsys, "list", "--json", "--task", "object-detection")
    records = json.loads(out)
    presets = list_presets("object-detection")
    assert code == 0 and len(records) == len(presets) > 0
    for record, preset in zip(records, presets, strict=True):
        assert (record["name"], record["params"], record["score"]) == (preset.name, preset.params, preset.score)
        assert record["unavailable"] == preset.unavailable


@pytest.mark.alone
@pytest.mark.parametrize(("name", "order"), [("mobilevit-s", "bgr"), ("mobilevitv2-1.0", "rgb")])
def test_info_of_an_alias_needs_no_network(capsys, name, order):
    code, out, err = run(capsys, "info", name)
    assert (code, err) == (0, "")
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["channel_order"] == order
    assert lines["params"] == str(get_preset(name).params)
    assert json.loads(run(capsys, "info", name, "--json")[1])["channel_order"] == order


def test_info_of_a_folder_says_what_its_files_say(capsys, model):
    record = json.loads(run(capsys, "info", model, "--json")[1])
    assert record["files"]["channel_order"] == "bgr"
    assert record["files"]["interpolation"] == "bilinear"
    assert record["files"]["size"] == {"shortest_edge": 72}
    assert record["files"]["crop_size"] == {"height": 64, "width": 64}
    assert record["files"]["labels"] == 5
    assert len(record["files"]["sha256"]) == 64
    assert record["differences"] == []
    code, out, err = run(capsys, "info", model)
    assert (code, err) == (0, "")
    assert "files.channel_order" in out and "bgr" in out


def test_alias_wins_over_a_folder_of_the_same_name(capsys, tmp_path, monkeypatch):
    (tmp_path / "mobilevit-s").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "info", "mobilevit-s", "--json")
    assert code == 0 and json.loads(out)["params"] == get_preset("mobilevit-s").params


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of `mobilevit-xxs` as its makers would publish them, but with another preprocessing."""
    folder = tmp_path_factory.mktemp("published") / "xxs"
    network = MODELS["mobilevit"](MobileViTConfig.from_preset("mobilevit-xxs"))
    network.save_pretrained(folder, processor=processor_for(300, 256, "bilinear", "rgb"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "used"),
    [("mobilevit-xxs", {"shortest_edge": 288}), ("apple/mobilevit-xx-small", {"shortest_edge": 300})],
)
def test_info_says_where_record_and_files_differ(capsys, monkeypatch, tmp_path, published, name, used):
    assert get_preset("mobilevit-xxs").hub_id == "apple/mobilevit-xx-small"
    with HubServer() as hub:
        hub.add("apple/mobilevit-xx-small", published)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        code, out, err = run(capsys, "info", name, "--download", "--json", "--cache-dir", tmp_path)
        text = run(capsys, "info", name, "--download", "--cache-dir", tmp_path)[1]
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["files"]["size"] == used
    order = "bgr" if used == {"shortest_edge": 288} else "rgb"
    assert record["files"]["channel_order"] == order
    assert record["differences"] == [
        f"size: the file says {{'shortest_edge': 300}}, our record {{'shortest_edge': 288}}; {used} is used",
        f"channel_order: the file says rgb, our record bgr; {order} is used",
    ]
    assert "channel_order: the file says rgb, our record bgr" in text
    assert ("note" in record) == ("/" in name)


@pytest.mark.parametrize(
    ("name", "alias", "file"),
    [
        ("apple/mobilevit-xx-small", "mobilevit-xxs", "preprocessor_config.json"),
        ("timm/mobilevit_s.cvnets_in1k", "mobilevit-s", "config.json"),
    ],
)
def test_info_of_a_known_hub_id_says_whose_preprocessing_is_used(capsys, name, alias, file):
    note = (
        f"loading {name!r} prepares images as the repository's own {file} says; loading {alias!r}, as this record says"
    )
    record = json.loads(run(capsys, "info", name, "--json")[1])
    assert (record["note"], record["name"]) == (note, alias)
    assert next(line for line in run(capsys, "info", name)[1].splitlines() if line.startswith("note ")).endswith(note)
    assert "note" not in json.loads(run(capsys, "info", alias, "--json")[1])


def test_info_fetches_the_weights_of_an_unknown_hub_id_on_request_only(capsys, monkeypatch, tmp_path, published):
    with HubServer() as hub:
        hub.add("someone/else", published)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        code, out, _ = run(capsys, "info", "someone/else", "--json", "--cache-dir", tmp_path)
        files = json.loads(out)["files"]
        assert (code, files["size"], files["labels"]) == (0, {"shortest_edge": 300}, 1000)
        assert not {"weights", "sha256"} & set(files)
        assert not list(tmp_path.glob("**/model.safetensors"))
        out = run(capsys, "info", "someone/else", "--download", "--json", "--cache-dir", tmp_path)[1]
    assert json.loads(out)["files"]["sha256"] == hashlib.sha256(published["model.safetensors"]).hexdigest()


# --- predict -------------------------------------------------------------------------------------------------------


def test_predict_prints_labels_with_probabilities(capsys, model, pictures):
    code, out, err = run(capsys, "predict", pictures / "b.png", "--model", model, "--top", "3")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.startswith(f"{pictures / 'b.png'}  (") and head.endswith(" ms)")
    expected = mh.predict(pictures / "b.png", model, top_k=3)[0]["predictions"]
    assert lines == [f"  {100 * p['score']:5.1f} %  {p['label']}" for p in expected]


@pytest.mark.alone
def test_predict_json_is_the_documented_array(capsys, model, pictures, broken):
    code, out, err = run(capsys, "predict", pictures / "b.png", broken, "--model", model, "--top", "2", "--json")
    results = json.loads(out)
    assert code == 1
    assert [set(result) for result in results] == [{"path", "predictions", "ms"}, {"path", "error"}]
    assert [result["path"] for result in results] == [str(pictures / "b.png"), str(broken)]
    assert results[0]["ms"] > 0
    predictions = results[0]["predictions"]
    assert [set(p) for p in predictions] == [{"label", "index", "score"}] * 2
    assert all(LABELS[p["index"]] == p["label"] for p in predictions)
    assert 1 >= predictions[0]["score"] >= predictions[1]["score"] >= 0
    assert "broken.jpg" in results[1]["error"]
    assert "broken.jpg" in err


def test_all_labels_together_have_probability_1(capsys, model, pictures):
    out = run(capsys, "predict", pictures / "b.png", "--model", model, "--top", "5", "--json")[1]
    predictions = json.loads(out)[0]["predictions"]
    assert sorted(p["index"] for p in predictions) == [0, 1, 2, 3, 4]
    assert sum(p["score"] for p in predictions) == pytest.approx(1, abs=1e-5)


def test_folders_are_searched_in_order(capsys, model, pictures):
    out = run(capsys, "predict", pictures, "--model", model, "--json")[1]
    assert [result["path"] for result in json.loads(out)] == [
        str(pictures / name) for name in ("a.JPG", "b.png", "more/c.webp")
    ]


def test_broken_file_is_reported_and_skipped(capsys, model, pictures, broken):
    code, out, err = run(capsys, "predict", broken, pictures / "missing.jpg", pictures / "b.png", "--model", model)
    assert code == 1
    assert next(line for line in out.splitlines() if not line.startswith("  ")).startswith(str(pictures / "b.png"))
    first, second, summary = err.splitlines()
    assert first.startswith("mobilevit-hub: error: ") and "broken.jpg" in first and "cut short or damaged" in first
    assert "missing.jpg: no such file" in second
    assert summary == "mobilevit-hub: 2 of 3 images failed"


def test_a_format_without_its_plugin_does_not_stop_the_others(capsys, model, pictures, tmp_path):
    if find_spec("pillow_heif") is not None:
        pytest.skip("with pillow-heif installed the file is an ordinary broken picture")
    heic = tmp_path / "photo.heic"
    heic.write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    code, out, err = run(capsys, "predict", heic, pictures, "--model", model, "--json")
    results = json.loads(out)
    assert code == 1 and "mobilevit_hub[heif]" in results[0]["error"] and "mobilevit_hub[heif]" in err
    assert all("predictions" in result for result in results[1:]) and len(results) > 1


def test_strict_stops_at_the_first_broken_file(capsys, model, pictures, broken):
    code, out, _ = run(capsys, "predict", broken, pictures / "b.png", "--model", model, "--strict", "--json")
    assert code == 1
    assert [result["path"] for result in json.loads(out)] == [str(broken)]


def test_one_broken_file_alone(capsys, model, broken):
    code, out, err = run(capsys, "predict", broken, "--model", model)
    assert (code, out) == (1, "")
    assert "broken.jpg" in one_line(err)


def test_empty_folder_is_refused(capsys, model, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = run(capsys, "predict", tmp_path / "empty", "--model", model)
    assert code == 2 and not out
    assert "holds no image files" in one_line(err)


def test_standard_input(capsys, model, pictures, monkeypatch):
    data = (pictures / "b.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    out = run(capsys, "predict", "-", pictures / "b.png", "--model", model, "--json")[1]
    piped, named = json.loads(out)
    assert piped["path"] == "-"
    assert piped["predictions"] == named["predictions"]


def test_empty_standard_input_is_reported(capsys, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, out, err = run(capsys, "predict", "-", "--model", model)
    assert (code, out) == (1, "")
    assert "empty" in one_line(err)


def test_top_below_1_is_refused(capsys, model, pictures):
    code, _, err = run(capsys, "predict", pictures / "b.png", "--model", model, "--top", "0")
    assert code == 2
    assert "top_k is 0" in one_line(err)


def test_control_characters_are_not_printed(capsys, model, tmp_path):
    good, bad = tmp_path / "a\x1b[31m\nb.png", tmp_path / "c\x1b]0;x\x07.png"
    good.write_bytes(encode(noise(), "PNG"))
    bad.write_bytes(b"broken")
    code, out, err = run(capsys, "predict", good, bad, "--model", model)
    assert code == 1
    assert "a?[31m?b.png" in out
    assert not any(c in out + err for c in "\x1b\x07")
    results = json.loads(run(capsys, "predict", good, "--model", model, "--json")[1])
    assert results[0]["path"] == str(good)


@pytest.mark.parametrize(("format", "ending"), [("GIF", "gif"), ("TIFF", "tif"), ("PNG", "png"), ("WEBP", "webp")])
def test_first_of_several_frames_is_noted(capsys, model, tmp_path, format, ending):
    first, *rest = (Image.fromarray(np.full((40, 40, 3), value, np.uint8)) for value in (10, 120, 240))
    several, single = tmp_path / f"several.{ending}", tmp_path / f"single.{ending}"
    first.save(several, format, save_all=True, append_images=rest)
    first.save(single, format)
    code, out, err = run(capsys, "predict", several, single, "--model", model, "--json")
    assert code == 0
    assert one_line(err) == f"mobilevit-hub: note: {several}: first of 3 frames\n"
    results = json.loads(out)
    scores = [[p["score"] for p in result["predictions"]] for result in results]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


@pytest.mark.tf
def test_tensorflow_is_found_after_two_commands_in_one_process():
    code = (
        "from importlib.util import find_spec\n"
        "from mobilevit_hub.cli.main import main\n"
        "print([main(['list', '--json']) for _ in range(2)], find_spec('tensorflow').name)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.endswith("[0, 0] tensorflow\n"), process.stderr


def test_closed_pipe_ends_quietly():
    with start("list", "--json") as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=600) in (0, 141)
    assert err == b""


def test_terminal_that_cannot_show_a_character():
    process = start("list", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, b"")
    assert b"\\u2013" in out  # the dash of a missing score


# --- train ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beginning") / "tiny"
    tiny(1, num_labels=7).float().save_pretrained(folder, processor=processor_for(36, 32, "bilinear", "bgr"))
    return folder


@pytest.mark.alone
def test_train_writes_a_checkpoint_that_predict_opens(capsys, shapes, beginning, tmp_path):
    output = tmp_path / "my model"
    options = ["--model", beginning, "--epochs", 2, "--batch-size", 16, "--image-size", 32, "--no-flip"]
    code, out, err = run(capsys, "train", shapes, "--output", output, *options, "--json", "--quiet")
    assert code == 0
    log = json.loads(out)
    assert (log["recipe"]["epochs"], log["recipe"]["flip"], log["recipe"]["batch_size"]) == (2, False, 16)
    assert "history" not in log
    assert "classifier for 3 labels is new" in one_line(err)
    photo = next((shapes / "validation" / "circle").iterdir())
    assert run(capsys, "predict", photo, "--model", output)[0] == 0

    code, out, err = run(capsys, "train", shapes, "--output", output, *options)
    assert (code, out) == (2, "")
    assert "holds an earlier run; continue it with --resume" in one_line(err)


def test_train_prints_one_line_and_shows_progress_on_stderr(capsys, shapes, tmp_path, beginning):
    options = ["--model", beginning, "--epochs", 1, "--batch-size", 16, "--image-size", 32]
    code, out, err = run(capsys, "train", shapes, "--output", tmp_path / "m", *options)
    assert code == 0
    assert one_line(out).startswith(f"{tmp_path / 'm'}: top-1 ")
    assert "on 12 photos" in out
    assert "epoch 1: top-1" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing/photos/here", "--output", "o"], "no such file or folder"),
        (["{shapes}", "--output", "o", "--model", "mobilevit-xxss"], "Did you mean"),
        (["{shapes}", "--output", "o", "--from-scratch", "--batch-size", "16", "--epochs", "1", "--model", "./x"],
         "There is no folder './x'"),
    ],
)  # fmt: skip
def test_job_that_cannot_start_ends_with_1(capsys, shapes, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", *(a.format(shapes=shapes) for a in arguments), "--quiet")
    assert (code, out) == (1, "")
    assert words in one_line(err)
    assert not Path("o").exists()


@pytest.mark.slow
def test_sigterm_ends_with_143(shapes, tmp_path):
    process = start(
        "train", shapes, "--output", tmp_path / "m", "--from-scratch", "--epochs", 5000, "--batch-size", 48,
        "--image-size", 32, "--save-steps", 1, "--quiet",
    )  # fmt: skip
    try:
        while not list((tmp_path / "m").glob("checkpoints/checkpoint-*")):
            assert process.poll() is None, process.stderr.read()
            signal.sigtimedwait([], 0.1)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 143
    assert b"Traceback" not in err
