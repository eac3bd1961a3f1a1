"""The verbs convert, verify and push: what they print where, and how they end."""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference
from hub_server import READER, WRITER, serving
from huggingface_hub import ModelCard
from networks import MODELS, awake, tiny_config
from safetensors import safe_open
from safetensors.numpy import save_file
from test_conversion import XXS, check_logits, save, weights

import mobilevit_hub as mh
from mobilevit_hub.cli.main import main
from mobilevit_hub.conversion import convert, libraries, verify
from mobilevit_hub.images.processor import processor_for

pytestmark = pytest.mark.torch

# TensorFlow and Keras hand NumPy an array in a way that NumPy is about to drop.
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
EMBEDDED = "mobilevit-xxs-tiny-imagenet"
PLACES = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "logits")


@pytest.fixture
def run(capsys):
    """Runs the command; returns exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def in_this_process(monkeypatch):
    """Compares libraries here: starting processes for them takes seconds."""
    for function in (convert, verify):
        module = sys.modules[function.__module__]
        monkeypatch.setattr(module, "compare", partial(module.compare, own_processes=False))


@pytest.fixture
def without_keras(monkeypatch):
    """As where Keras is not installed."""
    found = libraries.find_spec
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "keras" else found(name))


@pytest.fixture
def folder(tmp_path):
    """A small checkpoint without a card."""
    config = tiny_config(1, n_attn_blocks=[1, 1, 1], id2label={0: "cat", 1: "dog"}, num_labels=None)
    network = awake(MODELS["mobilevit"](config))
    network.save_pretrained(tmp_path / "tiny", processor=processor_for(72, 64, "bilinear", "rgb"))
    return tmp_path / "tiny"


def rewrite(folder, change):
    """Changes tensors of a folder and keeps what else is in the file, as a flipped bit does."""
    file = folder / "model.safetensors"
    tensors = weights(folder)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    change(tensors)
    save_file(tensors, file, metadata)


def make_logits_infinite(tensors):
    """By weights that are finite."""
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name][:] = np.finfo(np.float32).max


def git_blob(content):
    """As `git hash-object` names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def table(printed):
    """The cells of a report, by size and place."""
    rows = [line.split() for line in printed.splitlines()]
    return {(size, place): cells for size, place, *cells in (row for row in rows if len(row) > 2 and "×" in row[0])}


def one_line(said):
    assert said.count("\n") == 1 and said.startswith("mobilevit-hub: error: ")
    return said


# --------------------------------------------------------------------------------------------------
# All three
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["convert", "verify", "push"])
def test_help_has_examples(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    printed, said = capsys.readouterr()
    assert (ended.value.code, said) == (0, "")
    assert f"mobilevit-hub {verb} " in printed.partition("examples:")[2]


# --------------------------------------------------------------------------------------------------
# convert
# --------------------------------------------------------------------------------------------------


@QUIET
@pytest.mark.parity
def test_convert_verifies_and_says_so(run, tmp_path):
    source = save(tmp_path / "mobilevit_xxs.pt", reference.state_dict(XXS, "cvnets"))
    code, printed, said = run("convert", source, tmp_path / "out")
    assert (code, said) == (0, "")
    content = source.read_bytes()
    assert printed.splitlines()[:4] == [
        f"source    {source} (Apple's ml-cvnets, 311 tensors)",
        f"sha256    {hashlib.sha256(content).hexdigest()}",
        f"git blob  {git_blob(content)}",
        "network   mobilevit-xxs, 1000 labels",
    ]
    assert list(table(printed)) == [(size, place) for size in ("128×128", "104×136") for place in PLACES]
    assert all(float(cell) < 2e-4 for cells in table(printed).values() for cell in cells)
    *_, passed, wrote = printed.splitlines()
    assert passed.startswith("pass: largest difference ")
    assert wrote == f"wrote {tmp_path / 'out'}"
    check_logits(tmp_path / "out", XXS, "logits_224x300")


@pytest.mark.alone
def test_convert_without_verifying_says_so(run, folder, tmp_path):
    code, printed, said = run("convert", folder, tmp_path / "out", "--no-verify")
    assert (code, said, table(printed)) == (0, "", {})
    *_, line, wrote = printed.splitlines()
    assert line == (
        "not checked: what the result computes (--no-verify); its tensors are those that were read, to the bit"
    )
    assert wrote == f"wrote {tmp_path / 'out'}"


@QUIET
@pytest.mark.parity
def test_convert_as_json(run, in_this_process, folder, tmp_path):
    code, printed, said = run("convert", folder, tmp_path / "x.safetensors", "--to", "timm", "--json")
    found = json.loads(printed)
    assert (code, said) == (0, "")
    content = (folder / "model.safetensors").read_bytes()
    assert (found["sha256"], found["git_blob"]) == (hashlib.sha256(content).hexdigest(), git_blob(content))
    assert (found["source"], found["output"], found["target"]) == (str(folder), str(tmp_path / "x.safetensors"), "timm")
    assert (found["network"], found["labels"], found["kind"]) == ("mobilevit", 2, "transformers")
    assert found["parity"]["passed"] is True and {row["place"] for row in found["parity"]["rows"]} == set(PLACES)
    code, printed, _ = run("convert", folder, tmp_path / "out", "--json", "--no-verify")
    assert code == 0 and json.loads(printed)["parity"] is None


def test_convert_options(run, tmp_path):
    kinds = [f"kind {i}" for i in range(1000)]
    (tmp_path / "labels.txt").write_text("\n".join(kinds) + "\n", "utf-8")
    source = save(tmp_path / "x.bin", reference.state_dict("mobilevitv2_050", "timm"))
    options = ["--labels", tmp_path / "labels.txt", "--model", "mobilevitv2-0.5-384", "--channel-order", "bgr"]
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    code, printed, _ = run("convert", source, tmp_path / "out", *options, "--sha256", sha256, "--no-verify")
    assert code == 0 and "network   mobilevitv2-0.5-384, 1000 labels" in printed
    assert [line for line in printed.splitlines() if line.startswith("note")] == [
        "note      the stem is turned from RGB, which timm takes, to BGR"
    ]
    config, processor = mh.from_pretrained(tmp_path / "out").config, mh.image_processor(tmp_path / "out")
    assert list(config.id2label.values()) == kinds and config.image_size == 384
    assert (processor.channel_order, processor.crop_size["height"]) == ("bgr", 384)
    code, printed, _ = run("convert", source, tmp_path / "out", "--overwrite", "--no-verify")
    assert code == 0 and "note      taken for mobilevitv2-0.5 (256 px)" in printed
    assert mh.image_processor(tmp_path / "out").channel_order == "rgb"


def test_labels_from_a_file_of_another_system(run, tmp_path):
    """A byte order mark, two characters at the end of a line, and a label with a line separator in it."""
    kinds = ["dög", "one\u2028label", *(f"kind {i}" for i in range(2, 200))]
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(kinds).encode() + b"\r\n")
    code, _, said = run("convert", EMBEDDED, tmp_path / "out", "--labels", tmp_path / "labels.txt", "--no-verify")
    assert (code, said) == (0, "")
    assert list(mh.from_pretrained(tmp_path / "out").config.id2label.values()) == kinds


@pytest.mark.alone
def test_convert_where_one_library_alone_can_run(run, in_this_process, without_keras, folder, tmp_path):
    """transformers has no network of these depths."""
    code, printed, said = run("convert", folder, tmp_path / "out")
    assert (code, table(printed)) == (1, {})
    assert "nothing could be compared: only PyTorch can run it here" in one_line(said) and "--no-verify" in said
    assert not (tmp_path / "out").exists()
    assert run("convert", folder, tmp_path / "out", "--no-verify")[0] == 0


def test_a_failed_check_as_json_has_its_report(run, in_this_process, without_keras, tmp_path):
    network = awake(MODELS["mobilevit"](tiny_config(1)))
    network.save_pretrained(tmp_path / "tiny", processor=processor_for(72, 64, "bilinear", "rgb"))
    rewrite(tmp_path / "tiny", make_logits_infinite)
    code, printed, said = run("convert", tmp_path / "tiny", tmp_path / "out", "--json")
    error = json.loads(printed, parse_constant=pytest.fail)["error"]  # NaN is no JSON
    assert code == 1 and error["type"] == "ExportError" and error["message"] in one_line(said)
    report = error["report"]
    assert (report["passed"], report["reference"], len(report["rows"])) == (False, "PyTorch", 14)
    assert report["worst"]["place"] == "logits" and "Keras: keras is not installed" in report["not_checked"]


SECRET = "hunter2"  # noqa: S105 - of nobody


@pytest.mark.parametrize(("url", "options"), [
    (f"https://127.0.0.1/my weights.pt?token={SECRET}", []),
    (f"https://me:{SECRET} @127.0.0.1/x.pt", []),
    (f"https://me:{SECRET}@127.0.0.1/x.pt", []),
    (f"https://me:{SECRET}#3@127.0.0.1/x.pt", []),
    (f"https://me:{SECRET}/3@127.0.0.1/x.pt", []),
    (f"http://127.0.0.1/x.pt?token={SECRET}", []),
    (f"https://127.0.0.1/weights?token={SECRET}", []),
    (f"https://127.0.0.1/x.pt?token={SECRET}", ["--local-files-only"]),
    (f"https://me:{SECRET}@127.0.0.1/x.pt", ["--local-files-only"]),
])  # fmt: skip
def test_no_secret_of_an_address_is_shown(run, tmp_path, url, options):
    code, printed, said = run("convert", url, tmp_path / "out", "--json", *options)
    assert code == (1 if options else 2)
    assert SECRET not in printed + one_line(said)


@QUIET
@pytest.mark.parity
def test_progress_is_shown_to_people_unless_quiet(run, in_this_process, monkeypatch, folder, tmp_path):
    for arguments in (["convert", folder, tmp_path / "out", "--overwrite"], ["verify", folder]):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert "verifying" in run(*arguments)[2]
        assert run(*arguments, "--quiet")[2] == ""


def test_no_file_name_steers_the_terminal(run, folder, tmp_path):
    odd = folder.rename(tmp_path / "a\x1b[31m")
    code, printed, said = run("convert", odd, tmp_path / "b\x1b[31m", "--no-verify")
    assert code == 0 and "a?[31m" in printed and "wrote" in printed and "\x1b" not in printed + said


# --------------------------------------------------------------------------------------------------
# verify
# --------------------------------------------------------------------------------------------------


@QUIET
@pytest.mark.parity
def test_verify_the_embedded_checkpoint(run, in_this_process):
    file = Path(mh.__file__).parent / "assets" / EMBEDDED / "model.safetensors"
    code, printed, said = run("verify", EMBEDDED)
    assert (code, said) == (0, "")
    assert printed.splitlines()[:4] == [
        f"weights   {file}",
        f"sha256    {hashlib.sha256(file.read_bytes()).hexdigest()}",
        f"git blob  {git_blob(file.read_bytes())}",
        "hash      weights and config are as they were saved (save_id)",
    ]
    assert list(table(printed)) == [(size, place) for size in ("128×128", "104×136") for place in PLACES]
    assert printed.splitlines()[-1].startswith("pass: largest difference ")


@QUIET
@pytest.mark.parity
def test_verify_as_json_and_with_a_hash(run, in_this_process, folder):
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    code, printed, said = run("verify", folder, "--json", "--sha256", right)
    found = json.loads(printed)
    assert (code, said) == (0, "")
    assert found["passed"] is found["parity"]["passed"] is True
    assert (found["name"], found["weights"]) == (str(folder), str(folder / "model.safetensors"))
    assert found["sha256"] == right and found["hashes"] == [
        "the SHA-256 is the one that was given", "weights and config are as they were saved (save_id)",
    ]  # fmt: skip


def test_verify_with_another_hash(run, folder):
    code, printed, said = run("verify", folder, "--sha256", "0" * 64)
    assert (code, printed) == (1, "") and "0" * 64 in one_line(said)
    code, printed, said = run("verify", folder, "--sha256", "abc")
    assert (code, printed) == (2, "") and "sha256 is 'abc'; expected 64 hexadecimal digits" in one_line(said)


def test_verify_sees_one_changed_value(run, folder):
    def change(tensors):
        tensors["classifier.bias"].view(np.int32)[1] ^= 1

    before = weights(folder)["classifier.bias"]
    rewrite(folder, change)
    assert np.allclose(weights(folder)["classifier.bias"], before, rtol=1e-6)
    code, printed, said = run("verify", folder)
    assert (code, printed) == (1, "")
    assert "a value was changed since" in one_line(said)
    code, printed, _ = run("verify", folder, "--json")
    assert code == 1 and json.loads(printed)["error"]["type"] == "IntegrityError"


def test_verify_sees_labels_that_are_gone(run, folder):
    """Also where those that a config has by default are as many."""
    config = json.loads((folder / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    code, printed, said = run("verify", folder)
    assert (code, printed) == (1, "") and "but were saved as" in one_line(said)
    code, printed, _ = run("verify", folder, "--json")
    assert code == 1 and json.loads(printed)["error"]["type"] == "IntegrityError"


def test_verify_sees_weights_of_another_folder(run, folder, tmp_path):
    config = tiny_config(1, n_attn_blocks=[1, 1, 1], num_labels=2)
    awake(MODELS["mobilevit"](config), seed=1).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    code, printed, said = run("verify", folder)
    assert (code, printed) == (1, "") and "different saves" in one_line(said)


@QUIET
@pytest.mark.parity
def test_verify_of_what_nobody_has_hashed(run, in_this_process, folder):
    """A folder of others; and its logits are infinite."""
    rewrite(folder, make_logits_infinite)
    config = json.loads((folder / "config.json").read_text())
    del config["save_id"]
    (folder / "config.json").write_text(json.dumps(config))
    code, printed, said = run("verify", folder)
    assert (code, said) == (1, "")
    assert "hash      no other hash of it is known" in printed
    assert table(printed)["128×128", "logits"][:2] == ["inf", "FAIL"]
    assert table(printed)["128×128", "stage5"][0] != "inf"
    assert printed.splitlines()[-1].startswith("FAIL: values that are not finite (logits, ")


@QUIET
@pytest.mark.parity
def test_verify_compares_with_the_hash_that_the_hub_states(run, in_this_process, monkeypatch, folder, tmp_path):
    with serving(monkeypatch, tmp_path / "cache") as hub:
        hub.add("me/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
        code, printed, _ = run("verify", "me/tiny")
    assert code == 0 and "hash      the SHA-256 is the one that the Hub states" in printed


# --------------------------------------------------------------------------------------------------
# push
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_push_uploads_and_prints_the_address(run, hub, folder):
    code, printed, said = run("push", folder, "me/tiny", "--private", "--message", "The first")
    repository = hub.repositories["me/tiny"]
    assert (code, printed, said) == (0, f"{hub.url}/me/tiny/commit/{repository.commit}\n", "")
    assert repository.private and [commit["summary"] for commit in hub.commits] == ["The first"]
    card = ModelCard(repository.files.pop("README.md").decode())  # the folder has none
    assert card.data.library_name == "mobilevit_hub" and "from_pretrained('me/tiny')" in card.text
    assert repository.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not (folder / "README.md").exists()


def test_push_what_was_converted(run, hub, folder, tmp_path):
    assert run("convert", folder, tmp_path / "out", "--no-verify")[0] == 0
    code, printed, _ = run("push", tmp_path / "out", "me/tiny", "--json")
    repository = hub.repositories["me/tiny"]
    assert code == 0 and json.loads(printed) == {"commit": f"{hub.url}/me/tiny/commit/{repository.commit}"}
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert b"sha256 of the source" in written["README.md"]
    written["README.md"] = written["README.md"].replace(b"path/to/this-folder", b"me/tiny")  # where it is now
    assert repository.files == written


def test_push_shows_bars_to_people_unless_quiet(run, hub, folder, monkeypatch):
    import huggingface_hub.utils  # noqa: F401 - whose function hides the module of that name

    bars = sys.modules["huggingface_hub.utils.tqdm"]
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", None)  # which the tests set
    monkeypatch.setattr(bars, "progress_bar_states", {})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "model.safetensors" in run("push", folder, "me/one")[2]
    assert run("push", folder, "me/two", "--quiet")[2] == ""
    assert set(hub.repositories) == {"me/one", "me/two"}


def test_push_to_a_branch_as_a_pull_request(run, hub, folder):
    hub.add("me/tiny", {}, branches=("try",))
    assert run("push", folder, "me/tiny", "--revision", "try", "--create-pr")[0] == 0
    (commit,) = hub.commits
    assert (commit["revision"], commit["proposed"]) == ("try", True)
    code, printed, said = run("push", folder, "me/tiny", "--revision", "none")
    assert (code, printed) == (1, "") and "has no branch 'none'" in one_line(said)


def test_push_that_is_refused(run, hub, folder, monkeypatch):
    for token, word in (("hf_nobody", "status 401"), (READER, "status 403"), ("", "needs an access token")):
        monkeypatch.setenv("HF_TOKEN", token)
        code, printed, said = run("push", folder, "me/tiny")
        assert (code, printed) == (1, "") and word in one_line(said)
        assert not token or token not in said
    monkeypatch.setenv("HF_TOKEN", WRITER)
    code, printed, said = run("push", folder, "me/no such name")
    assert (code, printed) == (2, "") and "repo_id is 'me/no such name'" in one_line(said)
    code, printed, said = run("push", folder / "none", "me/tiny")
    assert (code, printed) == (1, "") and "There is no folder" in one_line(said)
    assert not hub.commits
