"""Saving: old or new and never half, whatever fails or is killed on the way."""

import copy
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import stat
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import MODELS, awake, tiny_config
from safetensors.numpy import load_file, save_file

from mobilevit_hub import files
from mobilevit_hub.checkpoints.loading import open_checkpoint
from mobilevit_hub.errors import CheckpointError, SaveError
from mobilevit_hub.files import json_bytes, sha256_of, write_file, write_folder
from mobilevit_hub.hub.find import find_checkpoint

pytestmark = pytest.mark.torch

OLD = {"config.json": b"old config", "model.safetensors": b"old weights", "README.md": b"old card"}
NEW = {"config.json": b"new config!", "model.safetensors": b"new weights!", "README.md": b"new card!"}


def contents(folder):
    """Bytes of every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def refused(call, *words):
    with pytest.raises(SaveError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.path
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, OSError)


# --------------------------------------------------------------------------------------------------
# What is written
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_new_files_get_the_mode_of_any_other_file_and_old_ones_keep_theirs(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "a.json", b"1")
        write_folder(tmp_path / "new", NEW)
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "config.json").write_bytes(b"")
        (tmp_path / "old" / "config.json").chmod(0o640)
        write_folder(tmp_path / "old", NEW)
        (tmp_path / "a.json").chmod(0o604)
        write_file(tmp_path / "a.json", b"2")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o777 & ~umask
    assert {mode(p) for p in (tmp_path / "new").iterdir()} == {0o666 & ~umask}
    assert mode(tmp_path / "old" / "config.json") == 0o640
    assert mode(tmp_path / "old" / "model.safetensors") == 0o666 & ~umask
    assert mode(tmp_path / "a.json") == 0o604


def test_writing_through_a_link_replaces_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == {"a": b"new"}

    (tmp_path / "folder link").symlink_to(tmp_path / "real")
    write_folder(tmp_path / "folder link", NEW)
    assert (tmp_path / "folder link").is_symlink()
    assert contents(tmp_path / "real") == NEW | {"a": b"new"}


def test_a_link_inside_the_folder_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "blob").write_bytes(b"shared")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").symlink_to(tmp_path / "blob")
    write_folder(tmp_path / "out", NEW)
    assert contents(tmp_path) == {"blob": b"shared"} | {f"out/{k}": v for k, v in NEW.items()}


def test_files_of_other_names_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"mine")
    write_folder(tmp_path, NEW)
    assert contents(tmp_path) == NEW | {"mine.txt": b"mine"}


def test_leftovers_of_killed_saves_are_removed_after_an_hour(tmp_path, monkeypatch):
    for parent in (tmp_path, tmp_path / "old"):
        parent.mkdir(exist_ok=True)
        (parent / ".tmp-mvh-1-file").write_bytes(b"x")
        (parent / ".tmp-mvh-1-folder").mkdir()
        (parent / ".tmp-mvh-1-folder" / "model.safetensors").write_bytes(b"x")
    write_folder(tmp_path / "old", NEW)
    write_folder(tmp_path / "new", NEW)
    assert len(list(tmp_path.rglob(".tmp-mvh-*"))) == 4  # somebody may still be writing them
    later = time.time() + 3700
    monkeypatch.setattr(files.time, "time", lambda: later)
    write_folder(tmp_path / "old", NEW)
    write_folder(tmp_path / "newer", NEW)
    assert not list(tmp_path.rglob(".tmp-mvh-*"))
    assert contents(tmp_path / "old") == NEW


def test_missing_parents_of_a_folder_are_made(tmp_path):
    write_folder(tmp_path / "a" / "b" / "c", NEW)
    assert contents(tmp_path / "a" / "b" / "c") == NEW


def test_json_and_hash_are_the_standard_ones(tmp_path):
    assert json_bytes({"b": 1, "a": "é"}) == json_bytes({"a": "é", "b": 1})
    assert json.loads(json_bytes({"a": "é"})) == {"a": "é"}
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["with space", "quote'\"", "per%cent", "new\nline", "-dash", "ünï", "trailing "])
def test_unusual_names_work(tmp_path, name):
    write_folder(tmp_path / name, NEW)
    write_folder(tmp_path / name, OLD)
    assert contents(tmp_path / name) == OLD


# --------------------------------------------------------------------------------------------------
# Places that cannot be written
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [lambda p: write_file(p, b"x"), lambda p: write_folder(p, NEW)])
def test_places_that_cannot_be_written_are_named(tmp_path, write):
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = contents(tmp_path)
    refused(lambda: write(tmp_path / "file" / "below"), "file")
    refused(lambda: write(tmp_path / "file" / "below" / "it"), "file")
    refused(lambda: write(tmp_path / ("x" * 256)), "too long")
    refused(lambda: write(tmp_path / "nul\0byte"), "null byte")
    refused(lambda: write(tmp_path / "loop" / "x"))
    cache = tmp_path / "hub" / "models--apple--mobilevit-small" / "snapshots" / "0123"
    refused(lambda: write(cache), "Hub's cache")
    assert contents(tmp_path) == before


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    refused(lambda: write_folder(tmp_path / "file", NEW), "it is a file")
    refused(lambda: write_file(tmp_path, b"x"), "it is a folder")
    refused(lambda: write_file(tmp_path / "no" / "such" / "x", b"x"), "folder above it does not exist")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_link_into_the_hub_cache_is_not_followed(tmp_path):
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123").write_bytes(b"shared")
    (tmp_path / "link").symlink_to(blobs / "0123")
    refused(lambda: write_file(tmp_path / "link", b"x"), "Hub's cache")
    assert (blobs / "0123").read_bytes() == b"shared"


# --------------------------------------------------------------------------------------------------
# Every operation fails once
# --------------------------------------------------------------------------------------------------


# Waiting for the folder to be on the disk, keeping a second name, making a parent that is there: a save goes on
# without them.
HARMLESS = (None, "open", "fsync", "link", "mkdir")


class Fault:
    """Makes the k-th operation on the file system that a save does fail with an error number."""

    def __init__(self, monkeypatch, k, number):
        self.left, self.number, self.hit = k, number, None
        for name in ("open", "fsync", "replace", "chmod", "mkdir", "link"):
            monkeypatch.setattr(os, name, self.failing(getattr(os, name), name))
        opened = os.fdopen

        def fdopen(*args, **kwargs):
            file = opened(*args, **kwargs)
            file_write = self.failing(file.write, "write")
            return _Proxy(file, file_write)

        monkeypatch.setattr(os, "fdopen", fdopen)

    def failing(self, call, name):
        def wrapper(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                self.hit = name
                raise OSError(self.number, os.strerror(self.number))
            return call(*args, **kwargs)

        return wrapper


class _Proxy:
    """A file whose `write` may fail after half of the bytes."""

    def __init__(self, file, write):
        self.file, self.checked_write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.checked_write(content[len(content) // 2 :])

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("what", ["new folder", "old folder", "part of a folder", "new file", "old file"])
def test_whichever_operation_fails_the_old_content_is_kept_and_nothing_left(tmp_path, what, number):
    hits = set()
    for k in range(1, 100):
        place = tmp_path / str(k)
        place.mkdir()
        target, new = place / "out", dict(NEW)
        if what == "old folder":
            write_folder(target, OLD)
        elif what == "part of a folder":
            write_folder(target, {"model.safetensors": b"old weights"})
        elif what == "old file":
            write_file(target, b"old")
        before = contents(place)
        after = {"out": b"new"} if what.endswith("file") else {f"out/{name}": value for name, value in new.items()}
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, k, number)
            try:
                write_file(target, b"new") if what.endswith("file") else write_folder(target, new)
                failed = False
            except SaveError as error:
                failed = True
                assert error.__cause__.errno == number
                if number == errno.ENOSPC:
                    assert "disk is full" in str(error)
                    assert "bytes are needed" in str(error)
        assert contents(place) == (before if failed else after), (k, fault.hit)
        assert failed or fault.hit in HARMLESS
        if fault.hit is None:
            break
        hits.add(fault.hit)
    else:
        pytest.fail("some operation is repeated for ever")
    assert {"open", "fsync", "replace", "write"} <= hits


def test_a_file_size_limit_keeps_the_old_content(tmp_path):
    write_folder(tmp_path / "out", OLD)
    big = dict(NEW, **{"model.safetensors": bytes(100_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 50_000, 99_999):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SaveError, match="allowed file size") as caught:
                write_folder(tmp_path / "out", big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "100,0" in str(caught.value)
        assert contents(tmp_path / "out") == OLD
    write_folder(tmp_path / "out", big)
    assert contents(tmp_path / "out") == big


def test_an_interrupt_restores_the_old_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", OLD)
    calls = []

    def interrupted(source, target, replace=os.replace):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", NEW)
    monkeypatch.undo()
    assert contents(tmp_path / "out") == OLD


def test_a_file_system_without_second_names_is_restored_from_a_copy(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", OLD)
    monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    write_folder(tmp_path / "out", NEW)
    assert contents(tmp_path / "out") == NEW

    def fails_for_config(source, target, replace=os.replace):
        if target.name == "config.json":
            raise OSError(errno.EIO, "broken")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", fails_for_config)
        refused(lambda: write_folder(tmp_path / "out", OLD))
    assert contents(tmp_path / "out") == NEW


# --------------------------------------------------------------------------------------------------
# The order of renames, several writers
# --------------------------------------------------------------------------------------------------


def test_weights_are_renamed_first_and_the_config_last(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", OLD)
    order = []

    def recorded(source, target, replace=os.replace):
        order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    write_folder(tmp_path / "out", NEW | {"preprocessor_config.json": b"{}"})
    assert order[0] == "model.safetensors"
    assert order[-1] == "config.json"
    assert len(order) == 4


@pytest.mark.parametrize("existing", [True, False])
def test_several_writers_end_with_the_content_of_one(tmp_path, existing, monkeypatch):
    rounds = 10 if existing else 40

    def lets_others_in(source, target, replace=os.replace):
        replace(source, target)
        time.sleep(0.002)

    monkeypatch.setattr(os, "replace", lets_others_in)
    for i in range(1 if existing else rounds):
        target = tmp_path / str(i)
        if existing:
            write_folder(target, OLD)
        barrier, failures = threading.Barrier(4), []

        def write(number, target=target, barrier=barrier, failures=failures):
            barrier.wait()
            try:
                for _ in range(rounds if existing else 1):
                    write_folder(target, {name: name.encode() + b"%d" % number * 500 for name in NEW})
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        found = contents(target)
        assert len({value[len(name) :] for name, value in found.items()}) == 1
        assert set(found) == set(NEW)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# --------------------------------------------------------------------------------------------------
# Checkpoints: a reader never sees a mixture
# --------------------------------------------------------------------------------------------------


@functools.cache
def checkpoint(number):
    """A classifier whose number stands in its weights and in its labels; not to be changed."""
    config = tiny_config(1, num_labels=None, id2label={0: f"save {number}", 1: "other"})
    model = awake(MODELS["mobilevit"](config), seed=1)
    with torch.no_grad():
        model.classifier.bias.fill_(number)
    return model


def saves(folder):
    """Numbers of the save in weights and labels of what loads."""
    model = MODELS["mobilevit"].from_pretrained(folder)
    return {int(model.classifier.bias[0]), int(model.config.id2label[0].split()[1])}


def test_equal_models_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        checkpoint(1).save_pretrained(tmp_path / name, card="card")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    checkpoint(2).save_pretrained(tmp_path / "a", card="card")
    checkpoint(1).save_pretrained(tmp_path / "a", card="card")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    MODELS["mobilevit"].from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c", card="card")
    assert contents(tmp_path / "c") == contents(tmp_path / "b")


def test_weights_and_config_of_two_saves_do_not_load(tmp_path):
    for number in (1, 2):
        checkpoint(number).save_pretrained(tmp_path / str(number))
    (tmp_path / "1" / "config.json").write_bytes((tmp_path / "2" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="different saves") as caught:
        saves(tmp_path / "1")
    assert caught.value.found != caught.value.expected


def in_child(work):
    """Runs `work` in a copy of this process and returns its id; wait for it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.parametrize("old", ["ours", "theirs"])
def test_stopped_before_each_operation_a_save_leaves_old_or_new_or_a_clear_error(tmp_path, old):
    good = tmp_path / "good"
    checkpoint(1).save_pretrained(good)
    if old == "theirs":  # without save ids, as transformers writes them
        save_file(load_file(good / "model.safetensors"), good / "model.safetensors", {"format": "pt"})
        config = json.loads((good / "config.json").read_bytes())
        del config["save_id"]
        (good / "config.json").write_text(json.dumps(config))
    outcomes, new = [], checkpoint(2)
    for k in range(1, 60):
        folder = tmp_path / str(k)
        shutil.copytree(good, folder)

        def save(k=k, folder=folder):
            count = 0

            def stops(call):
                def wrapper(*args, **kwargs):
                    nonlocal count
                    count += 1
                    if count == k:
                        os._exit(7)
                    return call(*args, **kwargs)

                return wrapper

            for name in ("open", "fsync", "replace", "chmod", "link", "unlink"):
                setattr(os, name, stops(getattr(os, name)))
            new.save_pretrained(folder)

        child = in_child(save)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            found = saves(folder)
            assert found in ({1}, {2}), k
            outcomes.append(found.pop())
        except CheckpointError as error:
            assert "different saves" in str(error)
            outcomes.append("mixed")
        if status == 0:
            break
    assert status == 0
    assert outcomes[0] == 1
    assert outcomes[-1] == 2
    assert "mixed" in outcomes
    assert [o for o in outcomes if o != "mixed"] == sorted(o for o in outcomes if o != "mixed")


def kill_often(folder, kills, seed):
    """Starts a saving process, kills it at a random moment, looks at the folder; counts what was found."""
    rng = random.Random(seed)  # noqa: S311
    good, new = folder.with_name("good"), checkpoint(2)
    checkpoint(1).save_pretrained(good)
    duration = 0.0
    found = Counter()
    for i in range(-3, kills):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        started = time.perf_counter()
        child = in_child(lambda: new.save_pretrained(folder))
        if i >= 0:
            time.sleep(rng.random() * duration * 1.5)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if i < 0:  # first, how long a save takes
            duration = max(duration, time.perf_counter() - started)
        try:
            state = saves(folder)
            assert state in ({1}, {2}), i
            found[state.pop()] += 1
        except CheckpointError as error:
            assert "different saves" in str(error), i
            found["mixed"] += 1
    return found


def test_killed_at_random_moments_a_save_leaves_old_or_new_or_a_clear_error(tmp_path):
    assert kill_often(tmp_path / "out", 25, seed=1)[2] >= 3  # those that were not killed


@pytest.mark.slow
def test_killed_hundreds_of_times(tmp_path):
    found = kill_often(tmp_path / "out", 500, seed=2)
    assert found[1] > 0
    assert found[2] > 0


def test_a_reader_beside_a_writer_sees_whole_saves(tmp_path):
    folder = tmp_path / "out"
    checkpoint(1).save_pretrained(folder)
    models = [checkpoint(2), checkpoint(1)]
    writer = in_child(lambda: [models[i % 2].save_pretrained(folder) for i in range(40)])
    seen = []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        _, config, tensors = open_checkpoint(folder)
        label = int(config.id2label[0].split()[1])
        assert label == int(tensors["classifier.bias"][0])
        seen.append(label)
    assert set(seen) == {1, 2}


def test_a_config_exchanged_between_config_and_weights_is_read_again(tmp_path, monkeypatch):
    """The writer finishes after the reader has read the old config: both parts must come from the new save."""
    folder = tmp_path / "out"
    checkpoint(1).save_pretrained(folder)
    from mobilevit_hub.checkpoints import reading as checkpoints

    reads = []

    def read_late(path):
        reads.append(path)
        if len(reads) == 1:
            checkpoint(2).save_pretrained(folder)
        return read(path)

    read = checkpoints.read_tensors
    monkeypatch.setattr(checkpoints, "read_tensors", read_late)
    assert saves(folder) == {2}
    assert len(reads) == 2


def test_loading_does_not_hold_on_to_the_file(tmp_path):
    checkpoint(1).save_pretrained(tmp_path / "out")
    model = MODELS["mobilevit"].from_pretrained(tmp_path / "out")
    before = model.classifier.weight.detach().clone()
    weights = tmp_path / "out" / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(1000)
    assert torch.equal(model.classifier.weight, before)
    with pytest.raises(CheckpointError, match="cut short|damaged"):
        saves(tmp_path / "out")


def test_nan_is_not_saved(tmp_path):
    checkpoint(1).save_pretrained(tmp_path / "out")
    before = contents(tmp_path / "out")
    broken = copy.deepcopy(checkpoint(2))
    with torch.no_grad():
        broken.classifier.weight[0, 0] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        broken.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_only_the_main_process_writes(tmp_path):
    checkpoint(1).save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def test_save_errors_reach_the_caller_of_save_pretrained(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    refused(lambda: checkpoint(1).save_pretrained(tmp_path / "file"), "it is a file")
    refused(lambda: checkpoint(1).save_pretrained(tmp_path / ("x" * 300)), "too long")
    refused(lambda: checkpoint(1).save_pretrained(tmp_path / "nul\0"), "null byte")
    assert contents(tmp_path) == {"file": b"mine"}


def test_saving_into_a_cache_snapshot_is_refused(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    checkpoint(1).save_pretrained(tmp_path / "out")
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "out").rename(snapshot)
    before = contents(snapshot)
    refused(lambda: checkpoint(2).save_pretrained(snapshot), "Hub's cache")
    assert contents(snapshot) == before
    assert find_checkpoint(snapshot).weights_file.is_file()
