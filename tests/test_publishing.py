"""Uploads to a Hub in miniature: what arrives loads again; what is wrong is refused in one line and sends nothing."""

import json
import re
import shutil
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hub_server import READER, WRITER, serving, use_endpoint
from huggingface_hub import ModelCard, constants
from networks import MODELS, awake, tiny_config

import mobilevit_hub as mh
from mobilevit_hub.checkpoints.tensors import read_tensors, to_safetensors
from mobilevit_hub.errors import (
    AccessError,
    CheckpointError,
    ConfigError,
    InputError,
    MobileViTHubError,
    NotFoundError,
    OfflineError,
    SourceError,
)
from mobilevit_hub.publishing.cards import checkpoint_card
from mobilevit_hub.publishing.upload import push

pytestmark = pytest.mark.torch

CARD = "---\nlicense: other\nlicense_name: of-the-weights\ntags: [mobilevit]\n---\n# Mine\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mine"
    config = tiny_config(2, id2label={i: f"kind {i}" for i in range(7)}, num_labels=None)
    model = awake(MODELS["mobilevitv2"](config), seed=5)
    model.save_pretrained(folder, processor=mh.MobileViTImageProcessor(size=72, crop_size=64), card=CARD)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(name, folder):
    ours, theirs = mh.from_pretrained(folder).state_dict(), mh.from_pretrained(name).state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[key]) for key, value in ours.items())


def refused(kind, *words, folder, repo_id="me/new", **options):
    """Checks the error of an upload and that no file went up."""
    options.setdefault("token", WRITER)
    with pytest.raises(MobileViTHubError) as caught:
        push(folder, repo_id, **options)
    assert type(caught.value) is kind, repr(caught.value)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert "hf_" not in message  # with which every token of these tests starts
    return message


# --------------------------------------------------------------------------------------------------
# What arrives
# --------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_what_was_pushed_loads_by_its_name(hub, folder, capfd, caplog):
    address = push(folder, "me/new", token=WRITER)
    repository = hub.repositories["me/new"]
    assert address == f"{hub.url}/me/new/commit/{repository.commit}"
    assert repository.files == contents(folder)  # to the byte
    assert len(hub.commits) == 1 and not repository.private
    assert same_weights("me/new", folder)
    assert mh.from_pretrained("me/new").config.id2label[6] == "kind 6"
    assert mh.image_processor("me/new").size == {"shortest_edge": 72}
    # the weights went to another host, which the token is not for
    headers = [headers for _, path, headers in hub.requests if path.startswith("/upload/")]
    assert headers and not any(WRITER in str(entry) for entry in headers)
    assert WRITER not in "".join(capfd.readouterr()) + caplog.text


def test_only_the_checkpoint_and_what_its_card_shows(hub, folder):
    (folder / "README.md").write_text(
        f"{CARD}![learning curve](learning_curve.png) ![a](../outside.png) ![b](http://x.example/far.png) ![c](gone.png)"
    )
    for name in ("learning_curve.png", "other.png", "training_log.json", "notes.txt", "pytorch_model.bin", "far.png"):
        (folder / name).write_bytes(b"{}")
    (folder / "checkpoints").mkdir()
    (folder.parent / "outside.png").write_bytes(b"secret")
    push(folder, "me/new", token=WRITER)
    assert set(hub.repositories["me/new"].files) == {
        "config.json", "preprocessor_config.json", "model.safetensors", "README.md", "learning_curve.png",
        "training_log.json",
    }  # fmt: skip


def test_a_folder_without_a_card_gets_one_in_the_upload_only(hub, folder):
    (folder / "README.md").unlink()
    before = contents(folder)
    push(folder, "me/new", token=WRITER)
    assert contents(folder) == before
    card = ModelCard(hub.repositories["me/new"].files["README.md"].decode())
    assert card.data.library_name == "mobilevit_hub" and "mobilevitv2" in card.data.tags
    network = mh.from_pretrained(folder)
    assert f"| parameters | {sum(p.numel() for p in network.parameters()):,} |" in card.text
    assert "from_pretrained('me/new')" in card.text and "shorter side of 72 pixels" in card.text
    assert "license" not in card.data.to_dict()


def test_a_card_that_opens_the_folder_opens_the_repository_once_it_is_there(hub, folder):
    text = checkpoint_card(mh.from_pretrained(folder).config, name="mine", facts=[])
    (folder / "README.md").write_text(text, "utf-8")
    push(folder, "me/new", token=WRITER)
    lines = re.findall(r"from_pretrained\(('[^']*')", hub.repositories["me/new"].files["README.md"].decode())
    assert lines == ["'me/new'"] * text.count("from_pretrained(") and len(lines) > 1
    assert (folder / "README.md").read_text("utf-8") == text


def test_a_card_on_the_hub_is_not_replaced_by_a_generated_one(hub, folder):
    hub.add("me/new", {"README.md": b"# written on the Hub"})
    (folder / "README.md").unlink()
    push(folder, "me/new", token=WRITER)
    assert hub.repositories["me/new"].files["README.md"] == b"# written on the Hub"
    assert same_weights("me/new", folder)


def test_a_second_push_replaces_the_first(hub, folder, tmp_path):
    push(folder, "me/new", token=WRITER)
    other = tmp_path / "other"
    awake(MODELS["mobilevitv2"](tiny_config(2)), seed=6).save_pretrained(other, card=CARD)
    push(other, "me/new", token=WRITER)
    assert len(hub.commits) == 2
    assert same_weights("me/new", other) and not same_weights("me/new", folder)


def test_branch_pull_request_and_messages(hub, folder):
    hub.add("me/new", {"README.md": b"# old"}, branches=("v1",))
    push(folder, "me/new", token=WRITER, revision="v1", message="First", description="Second line")
    push(folder, "me/new", token=WRITER, create_pr=True)
    on_branch, proposal = hub.commits
    assert (on_branch["revision"], on_branch["proposed"]) == ("v1", False)
    assert (on_branch["summary"], on_branch["description"]) == ("First", "Second line")
    assert (proposal["revision"], proposal["proposed"]) == ("main", True)
    assert hub.repositories["me/new"].files == {"README.md": b"# old"}


def test_an_owner_is_found_by_the_token_and_environment(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert push(folder, "new").startswith(f"{hub.url}/me/new/commit/")


def test_private_means_private(hub, folder):
    push(folder, "me/new", token=WRITER, private=True)
    push(folder, "me/new", token=WRITER, private=True)
    assert hub.repositories["me/new"].private
    hub.add("me/public", {})
    refused(InputError, "'me/public'", "is public", folder=folder, repo_id="me/public", private=True)
    assert hub.repositories["me/public"].files == {}


def test_a_relative_folder_with_the_name_of_an_alias_is_the_folder(hub, folder, monkeypatch):
    folder.rename(folder.with_name("mobilevit-s"))
    monkeypatch.chdir(folder.parent)
    push("mobilevit-s", "me/new", token=WRITER)
    assert same_weights("me/new", "./mobilevit-s")


def test_what_stock_transformers_saved_can_be_pushed(hub, tmp_path):
    import transformers

    config = transformers.MobileViTV2Config(width_multiplier=0.25, n_attn_blocks=[1, 1, 1], num_labels=7)
    transformers.MobileViTV2ForImageClassification(config).save_pretrained(tmp_path / "stock")
    push(tmp_path / "stock", "me/new", token=WRITER)
    assert same_weights("me/new", tmp_path / "stock")


# --------------------------------------------------------------------------------------------------
# Refused before anything is sent
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo_id", ["", "a b", "../x", "a/b/c", "me/new.git", "me/" + "x" * 97, "me--x/y", None, 3])
def test_bad_names_of_repositories(hub, folder, repo_id):
    refused(InputError, repr(repo_id), "owner/repository", folder=folder, repo_id=repo_id)
    assert not hub.requests


def change_weights(folder, change):
    tensors, metadata = read_tensors(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").write_bytes(to_safetensors(tensors, metadata))


def first_to_nan(tensors):
    name = next(n for n, t in tensors.items() if t.dtype == np.float32)
    tensors[name] = np.full_like(tensors[name], np.nan)


def other_save(folder):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"save_id": "0" * 32}))


def pickled_only(folder):
    state = mh.from_pretrained(folder).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shorten(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(("damage", "kind", "word"), [
    (lambda folder: shutil.rmtree(folder), NotFoundError, "There is no folder"),
    (lambda folder: (folder / "config.json").unlink(), ConfigError, "no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), ConfigError, "JSON"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "resnet"}'), ConfigError, "model_type"),
    (lambda folder: (folder / "model.safetensors").unlink(), NotFoundError, "has no model.safetensors"),
    (shorten, CheckpointError, "model.safetensors"),
    (other_save, CheckpointError, "different saves"),
    (lambda folder: change_weights(folder, first_to_nan), CheckpointError, "NaN"),
    (pickled_only, CheckpointError, "holds pytorch_model.bin"),
])  # fmt: skip
def test_folders_that_are_no_checkpoint(hub, folder, damage, kind, word):
    damage(folder)
    refused(kind, word, str(folder.name), folder=folder)
    assert not hub.requests


def test_a_timm_folder_is_to_be_converted_first(hub, tmp_path):
    import reference

    timm = {"architecture": "mobilevitv2_050", "num_classes": 1000}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    weights = to_safetensors(reference.state_dict("mobilevitv2_050", "timm"), {"format": "pt"})
    (tmp_path / "model.safetensors").write_bytes(weights)
    refused(CheckpointError, "timm's format", "Convert", folder=tmp_path)
    assert not hub.requests


@pytest.mark.parametrize(("card", "word"), [
    (b"---\nlicense: [other\n---\n# Mine", "expected"), (b"---\n- a\n---\n", "dict"),
    (b"---\ntags: [x]\n# no end", "missing"), (b"\xff\xfe", "UTF-8"),
])  # fmt: skip
def test_cards_with_broken_metadata(hub, folder, card, word):
    (folder / "README.md").write_bytes(card)
    refused(ConfigError, "README.md", word, folder=folder)
    assert not hub.requests


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "README.md", "curve.png"])
def test_a_link_that_leaves_the_folder_is_not_followed(hub, folder, tmp_path, name):
    (folder / "README.md").write_text(f"{CARD}![curve](curve.png)")
    (folder / "curve.png").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "secret")
    refused(InputError, f"{folder / name} is a link to", "outside the folder", folder=folder)
    assert not hub.requests


def test_the_links_of_the_cache_are_followed(hub, folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path.rename(tmp_path / "blobs" / f"of-{path.name}"))
    push(tmp_path / "snapshot", "me/new", token=WRITER)
    assert hub.repositories["me/new"].files == contents(tmp_path / "snapshot")


@pytest.mark.parametrize("architectures", [[3], [None], 3, {"a": 1}])
def test_a_config_that_names_no_class(hub, folder, architectures):
    (folder / "README.md").unlink()
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"architectures": architectures}))
    push(folder, "me/new", token=WRITER)
    card = ModelCard(hub.repositories["me/new"].files["README.md"].decode())
    assert card.data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("token", [None, True, False, "", "hf_with space", "hf_line\nbreak", "hf_ä"])
def test_tokens_that_cannot_be_sent(hub, folder, token):
    refused(AccessError, "token", folder=folder, token=token)
    assert not hub.requests


def test_an_empty_message_is_refused(hub, folder):
    refused(InputError, "message", folder=folder, message=" ")
    assert not hub.requests


def test_offline_by_the_environment(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(OfflineError, "HF_HUB_OFFLINE is set", folder=folder)
    assert not hub.requests


# --------------------------------------------------------------------------------------------------
# Refused by the Hub, or lost on the way
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "status"), [(READER, "403"), ("hf_unknown", "401")])
@pytest.mark.parametrize("exists", [False, True])
def test_tokens_without_the_right_to_write(hub, folder, token, status, exists):
    if exists:
        hub.add("me/new", {})
    refused(AccessError, status, "may write", folder=folder, token=token)
    assert not hub.commits and not hub.uploaded


STEPS = ["create", "validate-yaml", "preupload", "batch", "upload", "commit"]
FAULTS = {
    401: (AccessError, "may write"), 403: (AccessError, "may write"), 404: (NotFoundError, "No repository 'me/new'"),
    409: (SourceError, "push again"), 412: (SourceError, "push again"), 413: (SourceError, "413"),
    429: (SourceError, "429"), 500: (SourceError, "500"), 503: (SourceError, "503"),
    "hang up": (OfflineError, "cannot be reached"), "web page": (SourceError, "does not answer like the Hub"),
}  # fmt: skip
# A repository that exists is used, and of the storage's answer only the status counts.
HARMLESS = {("create", 409), ("upload", "web page")}


@pytest.mark.parametrize(("step", "fault"), sorted(set(product(STEPS, FAULTS)) - HARMLESS, key=str))
def test_every_failure_of_every_step_is_explained(hub, folder, step, fault):
    hub.faults[step] = fault
    kind, word = FAULTS[fault]
    refused(kind, word, folder=folder)
    assert not hub.commits
    hub.faults.clear()
    push(folder, "me/new", token=WRITER)  # and nothing is left that would be in the way
    assert hub.repositories["me/new"].files == contents(folder)


def test_a_card_that_only_the_hub_refuses(hub, folder):
    (folder / "README.md").write_text(CARD.replace("license: other", "license: My Licence"))
    refused(ConfigError, "model card", '"license" must be an identifier', folder=folder)
    assert not hub.commits and not hub.uploaded


def test_a_branch_that_is_not_there(hub, folder):
    refused(NotFoundError, "no branch 'v9'", folder=folder, revision="v9")
    assert not hub.commits


def test_nobody_listens(hub, folder, monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")  # the discard port
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(OfflineError, "http://127.0.0.1:9", "cannot be reached", "network", folder=folder)
