"""Checkpoints by name from a Hub in miniature: download, cache, offline, and each way in which it goes wrong."""

import gc
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from hub_server import WRITER, serving, use_endpoint
from huggingface_hub import constants
from networks import MODELS, awake, tiny_config
from PIL import Image

import mobilevit_hub as mh
from mobilevit_hub.checkpoints.tensors import to_safetensors
from mobilevit_hub.errors import (
    AccessError,
    CheckpointError,
    ConfigError,
    ImageError,
    InputError,
    IntegrityError,
    MobileViTHubError,
    MobileViTHubWarning,
    NotFoundError,
    OfflineError,
    SourceError,
)
from mobilevit_hub.hub import download as hub_module
from mobilevit_hub.hub.find import find_checkpoint

pytestmark = pytest.mark.torch

TINY = "somebody/tiny"
TOKEN, WRONG_TOKEN = "hf_secret_token", "hf_wrong_token"
SMALL, V2 = "apple/mobilevit-small", "timm/mobilevitv2_050.cvnets_in1k"
ASKED = {"config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"}
PROCESSOR = {
    "crop_size": {"height": 64, "width": 64}, "do_flip_channel_order": True, "do_center_crop": True,
    "do_rescale": True, "do_resize": True, "resample": 2, "rescale_factor": 1 / 255, "size": {"shortest_edge": 72},
}  # fmt: skip


def torch_bytes(tensors, folder):
    path = folder / "weights.bin"
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, path)
    return path.read_bytes()


def tiny_model():
    return awake(MODELS["mobilevit"](tiny_config(1)), seed=3).eval()


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    model.save_pretrained(folder)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    return files | {"preprocessor_config.json": json.dumps(PROCESSOR).encode(), "evil.py": b"raise SystemExit"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The two published formats, with weights by rule: transformers' pickle, timm's safetensors."""
    folder = tmp_path_factory.mktemp("published")
    timm = {
        "architecture": "mobilevitv2_050", "num_classes": 1000,
        "pretrained_cfg": {"input_size": [3, 256, 256], "crop_pct": 0.888, "interpolation": "bicubic"},
    }  # fmt: skip
    small_config = reference.config("mobilevit_s")
    small_config["id2label"] = {str(i): f"LABEL_{i}" for i in range(1000)}
    small_config["label2id"] = {f"LABEL_{i}": i for i in range(1000)}
    return {
        SMALL: {
            "config.json": json.dumps(small_config).encode(),
            "preprocessor_config.json": json.dumps(
                PROCESSOR | {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}
            ).encode(),
            "pytorch_model.bin": torch_bytes(reference.state_dict("mobilevit_s"), folder),
            "tf_model.h5": b"no",
            "README.md": b"card",
        },
        V2: {
            "config.json": json.dumps(timm).encode(),
            "model.safetensors": to_safetensors(reference.state_dict("mobilevitv2_050", "timm"), {"format": "pt"}),
            "pytorch_model.bin": b"not asked for",
        },
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def tiny_hub(hub, tiny_files):
    hub.add(TINY, tiny_files)
    return hub


def refused(kind, *words, name=TINY, **options):
    with pytest.raises(MobileViTHubError) as caught:
        mh.from_pretrained(name, **options)
    assert type(caught.value) is kind, repr(caught.value)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def loads(name=TINY, **options):
    """Loads the tiny checkpoint and compares every weight."""
    model = mh.from_pretrained(name, **options)
    wanted = tiny_model().state_dict()
    assert set(model.state_dict()) == set(wanted)
    for key, value in model.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    return model


def check_reference(model, variant):
    case = reference.load_case(variant, "logits_256x256")
    with torch.no_grad():
        case.check({"logits": model(torch.from_numpy(case.input())).logits.numpy()})


# --------------------------------------------------------------------------------------------------
# Download, cache, offline
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "repo_id", "variant"), [
    ("mobilevit-s", SMALL, "mobilevit_s"), ("mobilevitv2-0.5", V2, "mobilevitv2_050"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "no network"])
def test_published_checkpoints_load_and_load_again_offline(hub, published, monkeypatch, name, repo_id, variant, how):
    hub.add(repo_id, published[repo_id])
    model = mh.from_pretrained(name)
    check_reference(model, variant)
    assert model.config.id2label[0] == "tench"
    assert hub.asked_for() <= ASKED
    hub.stop()
    requests = len(hub.requests)
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how != "no network":  # not one attempt to connect
        monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("opened a connection"))
    again = mh.from_pretrained(name, local_files_only=how == "local_files_only")
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert mh.image_processor(name).channel_order == ("bgr" if name == "mobilevit-s" else "rgb")
    assert len(hub.requests) == requests
    assert not hub.waits  # nothing is tried again when all is there
    hub.stop = lambda: None


def test_the_processor_of_an_alias_needs_no_network(hub):
    for name in ("mobilevit-s", "mobilevitv2-1.0", "mobilevitv2-2.0-in22k-384"):
        processor, preset = mh.image_processor(name), mh.get_preset(name)
        assert processor.channel_order == preset.channel_order
        assert processor.interpolation == preset.interpolation
        assert processor.size == {"shortest_edge": preset.resize}
        assert processor.crop_size["height"] == preset.crop
    assert not hub.requests


def test_an_alias_uses_our_record_and_a_hub_id_its_own_file(hub, published):
    repo_id = "apple/mobilevitv2-1.0-imagenet1k-256"
    files = {"config.json": json.dumps(reference.config("mobilevitv2_100")).encode()}
    files["preprocessor_config.json"] = published[SMALL]["preprocessor_config.json"]  # as on the Hub: version 1's
    hub.add(repo_id, files)
    assert mh.image_processor("mobilevitv2-1.0").channel_order == "rgb"
    theirs = mh.image_processor(repo_id)
    assert (theirs.channel_order, theirs.interpolation) == ("bgr", "bilinear")
    assert hub.asked_for() == {"config.json", "preprocessor_config.json"}


def test_the_environment_is_obeyed(hub, tiny_files, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE in a process of its own."""
    hub.add(TINY, tiny_files, token=TOKEN)
    code = (
        f"from mobilevit_hub.checkpoints.loading import open_checkpoint\n_, _, tensors = open_checkpoint({TINY!r})\n"
        "print(repr(sum(float(t.astype('f8').sum()) for n, t in tensors.items() if 'num_' not in n)))"
    )
    python_path = os.pathsep.join(p for p in sys.path if p)
    wanted = sum(float(t.double().sum()) for n, t in tiny_model().state_dict().items() if "num_" not in n)
    home = tmp_path / "home"
    base = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"PYTHONPATH": python_path}
    base |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"}
    for extra in ({"HF_TOKEN": TOKEN}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=base | extra, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(wanted, rel=1e-9)
        assert TOKEN not in done.stdout + done.stderr
        before = len(hub.requests)
    assert len(hub.requests) == before
    assert (home / "hub" / "models--somebody--tiny").is_dir()


def test_only_the_allowed_files_are_requested(tiny_hub):
    loads()
    mh.image_processor(TINY)
    assert tiny_hub.asked_for() == ASKED - {"pytorch_model.bin"}
    with pytest.raises(InputError, match="evil.py"):
        hub_module.fetch(TINY, "evil.py")
    assert "evil.py" not in tiny_hub.asked_for()


def test_a_second_load_downloads_nothing(tiny_hub):
    loads()
    first = [r for r in tiny_hub.requests if r[0] == "GET"]
    loads()
    assert [r for r in tiny_hub.requests if r[0] == "GET"] == first


def test_cache_dir_and_revision(tiny_hub, tiny_files, tmp_path):
    repository = tiny_hub.add(TINY, tiny_files, branches=("v1.0",))
    loads(cache_dir=tmp_path / "elsewhere", revision="v1.0")
    assert (tmp_path / "elsewhere" / "models--somebody--tiny").is_dir()
    assert not (tmp_path / "cache" / "models--somebody--tiny").exists()
    asked = {path.split("/resolve/")[1].split("/")[0] for _, path, _ in tiny_hub.requests if "/resolve/" in path}
    assert asked == {"v1.0", repository.commit}  # the name is looked up once; then its commit counts
    loads(cache_dir=tmp_path / "elsewhere", revision=repository.commit, local_files_only=True)
    refused(NotFoundError, "no revision 'v2'", revision="v2")


def test_a_cached_name_is_looked_up_once_for_all_its_files(tiny_hub):
    photo = np.zeros((80, 90, 3), np.uint8)
    first = mh.predict(photo, TINY)
    before = len(tiny_hub.requests)
    assert mh.predict(photo, TINY)[0]["predictions"] == first[0]["predictions"]
    assert 1 <= len(tiny_hub.requests) - before <= 3


@pytest.mark.parametrize("changed_after", ["config.json", "preprocessor_config.json"])
def test_files_of_two_commits_are_never_mixed(tiny_hub, tiny_files, tmp_path, changed_after):
    """Somebody pushes while the files are being fetched."""
    awake(MODELS["mobilevit"](tiny_config(1)), seed=4).save_pretrained(tmp_path)
    newer = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    newer["preprocessor_config.json"] = tiny_files["preprocessor_config.json"].replace(b"72", b"96")
    tiny_hub.then[changed_after] = lambda: tiny_hub.push(TINY, newer)
    checkpoint = find_checkpoint(TINY)
    assert checkpoint.processor_data["size"] == {"shortest_edge": 72}
    loads(checkpoint)
    assert not tiny_hub.then
    again = find_checkpoint(TINY)
    assert again.processor_data["size"] == {"shortest_edge": 96}
    assert again.weights_file.read_bytes() == newer["model.safetensors"]


def test_the_token_is_sent_and_never_shown(hub, tiny_files, tmp_path, capfd, caplog):
    hub.add(TINY, tiny_files, token=TOKEN)
    message = refused(NotFoundError, TINY, "private", "token=")
    wrong = refused(NotFoundError, TINY, token=WRONG_TOKEN)
    model = loads(token=TOKEN)
    headers = [h.get("authorization") or h.get("Authorization") for _, path, h in hub.requests if "/resolve/" in path]
    assert f"Bearer {TOKEN}" in headers
    # The storage is another host: the token stays with the Hub.
    assert not any("uthorization" in " ".join(h) for _, path, h in hub.requests if path.startswith("/stored/"))
    model.save_pretrained(tmp_path / "out")
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    seen = message + wrong + "".join(capfd.readouterr()) + caplog.text
    for token in (TOKEN, WRONG_TOKEN):
        assert token not in seen
        assert token.encode() not in written


# --------------------------------------------------------------------------------------------------
# Three messages for three things
# --------------------------------------------------------------------------------------------------


def test_unknown_not_cached_and_no_network_are_three_messages(hub, monkeypatch, tmp_path):
    unknown = refused(NotFoundError, "Unknown checkpoint", "mobilevit-", name="mobilevit-m")
    assert not hub.requests
    not_there = refused(NotFoundError, "No repository 'nobody/nothing'", hub.url, name="nobody/nothing")
    not_cached = refused(
        OfflineError, "not in the cache", str(tmp_path / "cache"), "local_files_only", name=SMALL, local_files_only=True
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = refused(OfflineError, "not in the cache", "HF_HUB_OFFLINE is set", name="mobilevit-s")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # the discard port: nobody listens
    no_network = refused(OfflineError, "cannot be reached", "http://127.0.0.1:9", "network", name="mobilevit-s")
    assert len({unknown, not_there, not_cached, offline, no_network}) == 5


# --------------------------------------------------------------------------------------------------
# Everything that goes wrong on the way, and that a later load works
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(("fault", "kind", "words"), [
    (401, AccessError, ["refused access", "token="]),
    (403, AccessError, ["refused access", "token="]),
    ("gated", AccessError, ["gated", "accept its terms"]),
    (404, SourceError, ["404"]),
    (429, SourceError, ["429"]),
    (500, SourceError, ["500"]),
    (503, SourceError, ["503"]),
    ("loop", SourceError, ["redirect"]),
    ("short", SourceError, ["failed"]),
    ("no commit", SourceError, ["does not answer like the Hub", "HF_ENDPOINT"]),
])  # fmt: skip
def test_a_failed_download_is_explained_and_leaves_the_cache_usable(tiny_hub, name, fault, kind, words):
    tiny_hub.faults[name] = fault
    message = refused(kind, name if fault != "gated" else TINY, *words)
    assert "Traceback" not in message
    refused(kind, *words)
    tiny_hub.faults.clear()
    loads()
    cache = Path(constants.HF_HUB_CACHE)
    assert not list(cache.rglob("*.incomplete"))


def test_wrong_bytes_are_fetched_again_and_never_kept(tiny_hub):
    tiny_hub.faults["model.safetensors"] = "wrong"
    message = refused(IntegrityError, "model.safetensors", "hash", "removed from the cache")
    assert TINY in message
    assert len([r for r in tiny_hub.requests if r[:1] == ("GET",) and r[1].startswith("/stored/")]) == 2
    tiny_hub.faults.clear()
    loads()


def cached_weights(name="model.safetensors"):
    (link,) = Path(constants.HF_HUB_CACHE).rglob(name)
    return link


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_cache_is_repaired_online_and_explained_offline(tiny_hub, damage):
    def hurt():
        blob = cached_weights().resolve()
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        if damage == "gone":
            blob.unlink()
        else:
            blob.write_bytes({"cut": content[:-5], "flipped": content, "empty": b""}[damage])

    loads()
    hurt()
    loads()
    hurt()
    kind = OfflineError if damage == "gone" else IntegrityError
    refused(kind, TINY, "model.safetensors", local_files_only=True)
    refused(OfflineError, "not in the cache", local_files_only=True)
    loads()
    loads(local_files_only=True)


@pytest.mark.parametrize(("content", "kind", "word"), [
    (b"<!DOCTYPE html><html></html>", CheckpointError, "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", CheckpointError, "LFS pointer"),
    (b"", CheckpointError, "empty"),
    (to_safetensors({"a": np.zeros(3, np.float32)}, {}), CheckpointError, "wrong model family"),
])  # fmt: skip
def test_weights_that_are_none_are_refused_and_a_new_commit_loads(tiny_hub, tiny_files, content, kind, word):
    tiny_hub.add(TINY, tiny_files | {"model.safetensors": content})
    refused(kind, word)
    tiny_hub.add(TINY, tiny_files)
    loads()


def test_renamed_and_missing_tensors_are_named(hub, tiny_files):
    state = {name: value.numpy() for name, value in tiny_model().state_dict().items()}
    state["mobilevit.renamed"] = state.pop("mobilevit.conv_stem.convolution.weight")
    config = json.loads(tiny_files["config.json"])
    del config["save_id"]
    files = tiny_files | {"config.json": json.dumps(config).encode()}
    hub.add(TINY, files | {"model.safetensors": to_safetensors(state, {})})
    refused(CheckpointError, "1 missing, 1 unexpected", "conv_stem.convolution.weight", "mobilevit.renamed")


def test_missing_files_are_found_when_a_later_commit_has_them(hub, tiny_files):
    hub.add(TINY, {"README.md": b"empty"})
    refused(NotFoundError, "no file config.json")
    refused(NotFoundError, "no file config.json")
    without = {name: value for name, value in tiny_files.items() if name != "model.safetensors"}
    hub.add(TINY, without)
    refused(NotFoundError, "has no model.safetensors or pytorch_model.bin")
    refused(NotFoundError, "has no model.safetensors or pytorch_model.bin")
    hub.add(TINY, tiny_files)
    loads()


@pytest.mark.parametrize(("config", "word"), [(b"{}", "model_type"), (b"{", "JSON"), (b"[]", "object")])
def test_a_bad_config_is_refused_before_the_weights_are_fetched(hub, tiny_files, config, word):
    hub.add(TINY, tiny_files | {"config.json": config})
    refused(ConfigError, word, "config.json")
    assert "model.safetensors" not in hub.asked_for()


def test_a_cache_that_another_program_filled_is_used_offline(tiny_hub, tiny_files, tmp_path):
    """Without the notes on files that do not exist, and with a pickle only."""
    files = {n: v for n, v in tiny_files.items() if n not in ("model.safetensors", "preprocessor_config.json")}
    state = {name: value.numpy() for name, value in tiny_model().state_dict().items()}
    tiny_hub.add(TINY, files | {"pytorch_model.bin": torch_bytes(state, tmp_path)})
    loads()
    import shutil

    for notes in Path(constants.HF_HUB_CACHE).rglob(".no_exist"):
        shutil.rmtree(notes)
    loads(local_files_only=True)


def test_several_threads_load_into_an_empty_cache(tiny_hub):
    failures = []

    def load():
        try:
            loads()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len([r for r in tiny_hub.requests if r[0] == "GET" and r[1].startswith("/stored/")]) == 1


@pytest.mark.parametrize(
    "name", ["../x/y", "a/../b", "a--b/c", "owner/na me", "owner/" + "x" * 97, "owner/x.git", "-a/b"]
)
def test_names_that_the_hub_does_not_allow_are_never_sent(hub, name):
    refused(NotFoundError, name=name)
    assert not hub.requests


# --------------------------------------------------------------------------------------------------
# One way to run a checkpoint
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_files):
    """A tiny checkpoint with labels and a processor, and three pictures."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(1, num_labels=None, id2label={i: f"kind {i}" for i in range(7)})
    model = awake(MODELS["mobilevit"](config), seed=3)
    with torch.no_grad():
        model.classifier.weight.mul_(0.1)  # no probability so small that float32 rounds it to 0
    model.save_pretrained(folder / "model", processor=mh.MobileViTImageProcessor(size=72, crop_size=64))
    rng = np.random.default_rng(0)
    for i in range(3):
        small = rng.integers(0, 256, (5, 6 + i, 3), dtype=np.uint8)
        Image.fromarray(small).resize((100 + 20 * i, 90), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.alone
def test_predict_gives_the_softmax_of_the_model(folder):
    paths = [folder / f"{i}.png" for i in range(3)]
    results = mh.predict(paths, folder / "model", top_k=7)
    model, processor = mh.from_pretrained(folder / "model"), mh.image_processor(folder / "model")
    tops = set()
    for path, result in zip(paths, results, strict=True):
        assert set(result) == {"path", "predictions", "ms"}
        assert result["path"] == str(path)
        assert result["ms"] > 0
        with torch.no_grad():
            logits = model(processor(path, return_tensors="pt")["pixel_values"]).logits[0].numpy().astype(np.float64)
        wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        order = [p["index"] for p in result["predictions"]]
        assert order == list(np.argsort(-wanted))
        np.testing.assert_allclose([p["score"] for p in result["predictions"]], wanted[order], rtol=1e-4)
        assert [p["label"] for p in result["predictions"]] == [f"kind {i}" for i in order]
        json.dumps(result)
        tops.add(order[0])
    assert len(mh.predict(paths[0], folder / "model")[0]["predictions"]) == 5


def test_predict_goes_on_after_a_broken_picture(folder):
    results = mh.predict([folder / "0.png", folder / "broken.png", folder / "1.png"], folder / "model", top_k=1)
    assert set(results[1]) == {"path", "error"}
    assert "broken.png" in results[1]["path"]
    assert [len(r.get("predictions", [])) for r in results] == [1, 0, 1]
    whole = [mh.predict(folder / f"{i}.png", folder / "model", top_k=1)[0]["predictions"] for i in (0, 1)]
    assert [results[0]["predictions"], results[2]["predictions"]] == whole


def test_predict_takes_arrays_bytes_and_pictures(folder):
    path = folder / "0.png"
    wanted = mh.predict(path, folder / "model")[0]["predictions"]
    picture = Image.open(path)
    for source in (path.read_bytes(), np.asarray(picture), picture, str(path)):
        assert mh.predict(source, folder / "model")[0]["predictions"] == wanted
    with pytest.raises(InputError, match="top_k"):
        mh.predict(path, folder / "model", top_k=0)
    for options, word in (({"runtime": "onnx"}, "runtime"), ({"framework": "x"}, "framework")):
        with pytest.raises((InputError, TypeError), match=word):
            mh.predict(path, folder / "model", **options)


def test_the_pipeline_of_transformers_agrees_with_predict(folder):
    model, processor = mh.from_pretrained(folder / "model"), mh.image_processor(folder / "model")
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    for i in range(3):
        path = str(folder / f"{i}.png")
        wanted = mh.predict(path, folder / "model", top_k=3)[0]["predictions"]
        found = classify(path, top_k=3)
        assert [f["label"] for f in found] == [w["label"] for w in wanted]
        np.testing.assert_allclose([f["score"] for f in found], [w["score"] for w in wanted], rtol=1e-4)


def test_a_folder_without_a_processor_warns_and_uses_apples_rule(tmp_path):
    for version, order, interpolation in ((1, "bgr", "bilinear"), (2, "rgb", "bicubic")):
        config = tiny_config(version, image_size=64)
        MODELS[config.model_type](config).save_pretrained(tmp_path / str(version))
        with pytest.warns(MobileViTHubWarning, match="no preprocessor_config.json.*72.*64") as caught:
            processor = mh.image_processor(tmp_path / str(version))
        assert len(caught) == 1
        assert (processor.channel_order, processor.interpolation) == (order, interpolation)
        assert processor.size == {"shortest_edge": 72}
        assert processor.crop_size["height"] == 64


def test_a_folder_uses_its_own_processor(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor = mh.image_processor(folder / "model")
    assert processor.size == {"shortest_edge": 72}
    with pytest.raises(ImageError):
        processor(folder / "broken.png")


@pytest.mark.parametrize(("data", "word"), [
    ({"size": 0}, "size"), ({"rescale_factor": -1}, "rescale_factor"), ({"resample": "fancy"}, "resample"),
    ({"image_std": [0, 1, 1]}, "image_std"), ({"image_mean": [0.5]}, "image_mean"),
])  # fmt: skip
def test_a_wrong_processor_is_a_config_error(tmp_path, tiny_files, data, word):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(tiny_files[name])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | data))
    with pytest.raises(ConfigError, match=word) as caught:
        mh.image_processor(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


def test_timm_settings_without_a_size_are_a_config_error(tmp_path):
    right = {"input_size": [3, 256, 256]}
    for settings in ({}, {"input_size": []}, {"input_size": [3, "x"]}, right | {"crop_pct": 0}, [right], "text", 5):
        data = {"architecture": "mobilevit_xxs", "pretrained_cfg": settings}
        (tmp_path / "config.json").write_text(json.dumps(data))
        with pytest.raises(ConfigError, match="pretrained_cfg"):
            mh.image_processor(tmp_path)


@pytest.mark.parametrize(("changes", "is_right"), [
    ({}, True), ({"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}, True),
    ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, False),
    ({"mean": [0.5, 0.5, 0.5]}, False), ({"std": [0.5, 0.5, 0.5]}, False),
])  # fmt: skip
def test_timm_settings_that_normalise_are_refused(tmp_path, changes, is_right):
    settings = {"input_size": [3, 256, 256], "crop_pct": 0.9, **changes}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "mobilevit_xxs", "pretrained_cfg": settings}))
    if is_right:
        assert mh.image_processor(tmp_path).size == {"shortest_edge": 284}
        return
    with pytest.raises(ConfigError, match="pretrained_cfg subtracts mean .* and divides by std .*\\[0, 1\\]") as caught:
        mh.image_processor(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_labels_of_a_timm_folder(tmp_path):
    state = reference.state_dict("mobilevit_xxs", "timm")
    state |= {name: state[name][:3].copy() for name in ("head.fc.weight", "head.fc.bias")}
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(state, {"format": "pt"}))
    config = {"architecture": "mobilevit_xxs", "num_classes": 3, "label_names": ["cat", "dög", "水"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert mh.from_pretrained(tmp_path).config.id2label == {0: "cat", 1: "dög", 2: "水"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": ["cat", "dog"]}))
    assert mh.from_pretrained(tmp_path).config.id2label == {i: f"LABEL_{i}" for i in range(3)}


def test_framework_and_task_choose_the_class(folder):
    assert type(mh.from_pretrained(folder / "model")) is mh.MobileViTForImageClassification
    assert type(mh.from_pretrained(folder / "model", task="features")) is mh.MobileViTModel
    assert type(mh.from_pretrained(folder / "model", task="backbone")) is mh.MobileViTBackbone
    for options in ({"framework": "jax"}, {"task": "detection"}):
        with pytest.raises(InputError, match=next(iter(options.values()))):
            mh.from_pretrained(folder / "model", **options)


# --------------------------------------------------------------------------------------------------
# Tools of transformers
# --------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_trainer_saves_folders_that_load(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.rand(3, 32, 32, generator=generator), "labels": i % 7} for i in range(8)]
    arguments = transformers.TrainingArguments(
        tmp_path / "runs", max_steps=2, save_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=tiny_model(), args=arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    wanted = trainer.model.state_dict()
    assert not torch.equal(wanted["classifier.weight"], tiny_model().state_dict()["classifier.weight"])
    for place in (tmp_path / "runs" / "checkpoint-2", tmp_path / "final"):
        for key, value in mh.from_pretrained(place).state_dict().items():
            assert torch.equal(value, wanted[key]), key
    del trainer
    gc.collect()


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_push_to_hub_uploads_a_checkpoint_that_loads(hub, source, monkeypatch):
    options = {"token": WRITER} if source == "argument" else {}
    if source == "environment":
        monkeypatch.setenv("HF_TOKEN", WRITER)
    # what transformers' own tools pass is accepted
    address = tiny_model().push_to_hub("me/mine", commit_message="First", tags=["x"], max_shard_size="1GB", **options)
    assert address.startswith(f"{hub.url}/me/mine/commit/")
    assert hub.commits[0]["summary"] == "First"
    assert set(hub.repositories["me/mine"].files) == {"README.md", "config.json", "model.safetensors"}
    loads("me/mine")


def test_saving_with_push_to_hub_uploads_the_whole_checkpoint(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.txt").write_text("mine")
    processor = mh.MobileViTImageProcessor(size=72, crop_size=64)
    tiny_model().save_pretrained(
        tmp_path / "mine", processor=processor, card="# my card", push_to_hub=True, token=WRITER, private=True,
        commit_description="Why", dataset="unknown to us",
    )  # fmt: skip
    repository = hub.repositories["me/mine"]  # by the name of the folder
    assert repository.private and hub.commits[0]["description"] == "Why"
    assert set(repository.files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert repository.files["README.md"] == b"# my card"
    loads("me/mine")
    assert mh.image_processor("me/mine").size == {"shortest_edge": 72}
