"""Weights files that are damaged, hostile or not weights at all: one error of ours each, and nothing is executed."""

import argparse
import json
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import save as torch_safetensors

from mobilevit_hub.checkpoints.tensors import check_values, read_tensors, to_safetensors
from mobilevit_hub.errors import CheckpointError, MobileViTHubError, NotFoundError, SourceError, listed

pytestmark = pytest.mark.torch

GOOD = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.num_batches_tracked": np.array(100)}


def refused(path, *words, field=None):
    """The message of the error that reading gives: ours, one line, naming the file."""
    before = path.read_bytes(), sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert caught.value.path == str(path)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert field is None or caught.value.field == field
    assert before == (path.read_bytes(), sorted(p.name for p in path.parent.iterdir()))
    return message


def put(folder, content, name="model.safetensors"):
    path = folder / name
    path.write_bytes(content)
    return path


def safetensors_of(header, body=b""):
    """A file with a header of our own making."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


def torch_file(folder, content, **options):
    torch.save(content, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


# --------------------------------------------------------------------------------------------------
# What loads
# --------------------------------------------------------------------------------------------------


def assert_good(tensors):
    assert sorted(tensors) == sorted(GOOD)
    for name, value in GOOD.items():
        np.testing.assert_array_equal(tensors[name], value, strict=True)


def test_tensors_survive_writing_and_reading_in_every_container(tmp_path):
    tensors, metadata = read_tensors(put(tmp_path, to_safetensors(GOOD, {"format": "pt"})))
    assert_good(tensors)
    assert metadata == {"format": "pt"}
    for zipped in (True, False):
        state = {name: torch.from_numpy(value) for name, value in GOOD.items()}
        tensors, metadata = read_tensors(torch_file(tmp_path, state, _use_new_zipfile_serialization=zipped))
        assert_good(tensors)
        assert metadata == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_every_float_type_keeps_its_values(tmp_path, dtype, container):
    values = torch.tensor([[1.5, -0.25, 65504.0], [1e-3, 0.0, -3.0]]).to(dtype)
    if container == "bin":
        path = torch_file(tmp_path, {"w": values})
    else:
        path = put(tmp_path, torch_safetensors({"w": values}))
    (array,) = read_tensors(path)[0].values()
    np.testing.assert_array_equal(array.astype(np.float64), values.double().numpy())
    assert str(array.dtype) == ("float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))


def test_scalars_and_empty_tensors_are_read(tmp_path):
    odd = {"scalar": np.array(3.0, np.float32), "empty": np.zeros((0, 4), np.float32)}
    tensors, _ = read_tensors(put(tmp_path, to_safetensors(odd, {})))
    assert {name: t.shape for name, t in tensors.items()} == {"scalar": (), "empty": (0, 4)}


def test_what_is_read_does_not_change_with_the_file(tmp_path):
    path = put(tmp_path, to_safetensors(GOOD, {}))
    tensors, _ = read_tensors(path)
    path.write_bytes(b"")
    assert_good(tensors)
    tensors["a.weight"] += 1  # writable, so that a framework may keep it


@pytest.mark.parametrize("metadata", [None, {"format": "tf"}, {"format": "pt", "x": "é"}])
def test_metadata_may_be_absent_or_anybodys(tmp_path, metadata):
    tensors, found = read_tensors(put(tmp_path, save(GOOD, metadata)))
    assert_good(tensors)
    assert found == (metadata or {})


def test_names_are_only_names(tmp_path):
    names = ["../../x", "", "/etc/passwd", "<b>"]
    tensors, _ = read_tensors(put(tmp_path, to_safetensors({n: np.zeros(1, np.float32) for n in names}, {})))
    assert set(tensors) == set(names)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_equal_tensors_give_equal_bytes():
    backwards = dict(reversed(GOOD.items()))
    metadata = {"format": "pt", "save_id": "1", "x": "2"}
    assert (
        len({to_safetensors(t, m) for t in (GOOD, backwards) for m in (metadata, dict(reversed(metadata.items())))})
        == 1
    )


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    types = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    tensors = {f"ü {t}": np.arange(6).reshape(2, 3)[:, ::-1].astype(t) for t in types} | {
        "scalar": np.float32(3).reshape(())
    }
    path = put(tmp_path, to_safetensors(tensors, {"format": "pt", "name": "ü"}))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "name": "ü"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("wrap", [
    lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: {"ema": s},
    lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}}, lambda s: {"model": {"state_dict": s}},
    lambda s: {f"module.{k}": v for k, v in s.items()}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"ema_model": s}, lambda s: {"model_ema": {"state_dict": s}},
    *(lambda s, p=p: {p + k: v for k, v in s.items()} for p in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module.")),
])  # fmt: skip
def test_wrappers_of_training_scripts_are_taken_off(tmp_path, wrap):
    state = {name: torch.from_numpy(value) for name, value in GOOD.items()}
    assert_good(read_tensors(torch_file(tmp_path, wrap(state)))[0])


@pytest.mark.parametrize(("one", "other"), [
    ("model", "ema"), ("model", "model_ema"), ("model", "ema_model"), ("model", "ema_state_dict"),
    ("state_dict", "state_dict_ema"), ("model_state_dict", "ema_model_state_dict"),
])  # fmt: skip
def test_a_file_with_two_sets_of_weights_lists_the_choices(tmp_path, one, other):
    state = {"w": torch.zeros(1)}
    refused(torch_file(tmp_path, {one: state, other: state}), "holds several sets of weights", f"({one}, {other})")


# --------------------------------------------------------------------------------------------------
# What is not weights
# --------------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 22345678\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("content", "words"), [
    (b"", ["empty", "0 bytes"]),
    (POINTER, ["Git LFS pointer", "22345678 bytes", "git lfs pull"]),
    (b"<!DOCTYPE html><html><body>Sign in</body></html>", ["web page"]),
    (b"\n  <html>", ["web page"]),
    (b"just some text, no weights at all", []),
])  # fmt: skip
def test_files_that_people_download_by_mistake_are_named(tmp_path, name, content, words):
    refused(put(tmp_path, content, name), *words)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that is there and cannot be read")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    (tmp_path / name).symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match="cannot be read: ") as caught:
        read_tensors(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------
# Damaged safetensors
# --------------------------------------------------------------------------------------------------


def test_a_cut_or_padded_file_says_how_long_it_should_be(tmp_path):
    whole = to_safetensors({"w": np.zeros(100, np.float32)}, {})
    for content in (whole[:-1], whole[: len(whole) // 2 + 50], whole + b"\0"):
        assert len(content) != len(whole)
        refused(put(tmp_path, content), f"{len(content):,} bytes", f"{len(whole):,}")


def test_an_absurd_header_length_is_refused(tmp_path):
    refused(put(tmp_path, b"\xff" * 8 + b"{}"), "claims", "10 bytes"[:2])
    refused(put(tmp_path, b"\1\2\3"), "3 bytes")
    refused(put(tmp_path, struct.pack("<Q", 100) + b"{}"), "100 bytes", "10")


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize("header", [
    {"a": entry(0, 4), "b": entry(0, 4)},
    {"a": entry(0, 4), "b": entry(6, 10)},
    {"a": entry(4, 8)},
    {"a": entry(-4, 0)},
    {"a": entry(8, 4)},
    {"a": entry(0, 2**63, [2**61])},
    {"a": entry(0, 8, [2**32, 2**32, 2**32])},
    {"a": entry(0, 8, dtype="F128")},
    {"a": entry(0, 8, [3])},
    {"a": {"dtype": "F32"}},
    {"a": [1, 2, 3]},
    {"__metadata__": {"k": 1}},
    {"__metadata__": [1]},
    [1, 2],
    b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    b'{"\xff\xfe": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    b'{"a":' + b"[" * 100_000,
    b"null",
    b"\0" * 20,
])  # fmt: skip
def test_a_wrong_header_is_refused(tmp_path, header):
    refused(put(tmp_path, safetensors_of(header, b"\0" * 8)))


def test_more_than_ten_thousand_tensors_are_refused(tmp_path):
    header = {f"t{i}": entry(0, 0, [0]) for i in range(10_001)}
    refused(put(tmp_path, safetensors_of(header)), "10,000")
    disguised = json.dumps(header).replace("data_offsets", "data_of\\u0066sets").encode()
    refused(put(tmp_path, safetensors_of(disguised)), "10,000")
    refused(torch_file(tmp_path, {f"t{i}": torch.zeros(0) for i in range(10_001)}), "10,000")
    del header["t0"]
    assert len(read_tensors(put(tmp_path, safetensors_of(header)))[0]) == 10_000


def test_number_types_that_weights_never_have_are_named(tmp_path):
    path = put(tmp_path, torch_safetensors({"w": torch.zeros(4).to(torch.float8_e4m3fn)}))
    refused(path, "'w'", "F8_E4M3", "float16", field="w")


# --------------------------------------------------------------------------------------------------
# Hostile and damaged PyTorch files
# --------------------------------------------------------------------------------------------------


class Payload:
    """Unpickling it writes a marker file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_not_executed(tmp_path, zipped):
    marker = tmp_path.with_name(tmp_path.name + "-marker")
    path = torch_file(tmp_path, {"w": torch.zeros(1), "x": Payload(marker)}, _use_new_zipfile_serialization=zipped)
    message = refused(path, "contains code", "safetensors")
    assert "weights_only" not in message  # never advice that turns the protection off
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301 - the negative twin: unprotected, it does write
    assert marker.exists()


def test_a_bare_pickle_is_not_executed(tmp_path):
    marker = tmp_path.with_name(tmp_path.name + "-marker")
    refused(put(tmp_path, pickle.dumps(Payload(marker)), "pytorch_model.bin"))
    assert not marker.exists()


@pytest.mark.parametrize("content", [
    torch.nn.Linear(2, 2), {"args": argparse.Namespace(lr=1)}, {"w": torch.zeros(1), "best": np.float64(0.7)},
], ids=["module", "namespace", "numpy scalar"])  # fmt: skip
def test_objects_are_refused_with_safe_advice(tmp_path, content):
    message = refused(torch_file(tmp_path, content), "contains code or non-tensor objects", "safetensors")
    assert "weights_only" not in message


@pytest.mark.parametrize(("content", "words"), [
    ([torch.zeros(1)], ["list", "dictionary"]),
    ({"w": torch.zeros(1), "epoch": 3}, ["'epoch'", "int"]),
    ({"w": [torch.zeros(1)]}, ["'w'", "list"]),
    ({"w": torch.zeros(3).to_sparse()}, ["'w'"]),
    ({"w": torch.empty(3, device="meta")}, ["'w'"]),
    ({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, ["'w'", "float8"]),
])  # fmt: skip
def test_contents_that_are_no_plain_tensors_are_named(tmp_path, content, words):
    refused(torch_file(tmp_path, content), *words)


def test_a_tensor_that_claims_more_than_it_stores_is_refused_before_it_is_copied(tmp_path):
    path = torch_file(tmp_path, {"w": torch.zeros(1).expand(10**9)})
    assert path.stat().st_size < 4000
    refused(path, "'w'", "1,000,000,000", field="w")


def test_tensors_that_share_memory_are_read(tmp_path):
    base = torch.arange(6.0)
    tensors, _ = read_tensors(torch_file(tmp_path, {"a": base[:3], "b": base.view(2, 3).T}))
    np.testing.assert_array_equal(tensors["a"], [0, 1, 2])
    np.testing.assert_array_equal(tensors["b"], [[0, 3], [1, 4], [2, 5]])


def test_zip_bombs_are_refused(tmp_path):
    path = torch_file(tmp_path, {"w": torch.zeros(2_000_000)})
    deflated = tmp_path / "bomb.bin"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert deflated.stat().st_size < 20_000
    refused(deflated, "compressed")

    overlapping = tmp_path / "overlap.bin"
    with zipfile.ZipFile(overlapping, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
        archive.infolist()[0].file_size = 10**9
    refused(overlapping)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_cut_pytorch_files_are_refused(tmp_path, zipped, share):
    path = torch_file(tmp_path, {"w": torch.zeros(1000)}, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused(put(tmp_path, whole[: int(len(whole) * share)], path.name))


# --------------------------------------------------------------------------------------------------
# Random damage
# --------------------------------------------------------------------------------------------------


def mutate(content, rng):
    """One of: bits flipped, a byte set, cut, zeros, a word of an interesting value, bytes inserted or deleted."""
    content = bytearray(content)
    # Most of what can go wrong is at the ends, where headers and directories are.
    place = rng.choice([rng.randrange(len(content)), rng.randrange(min(300, len(content))), -1 - rng.randrange(200)])
    place %= len(content)
    kind = rng.randrange(7)
    if kind == 0:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[place] = rng.randrange(256)
    elif kind == 2:
        del content[place:]
    elif kind == 3:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == 4:
        content[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(content)]))
    elif kind == 5:
        content[place:place] = rng.randbytes(rng.randrange(1, 9))
    else:
        del content[place : place + rng.randrange(1, 9)]
    return bytes(content)


def test_flipped_values_in_a_zip_are_noticed_by_its_checksum(tmp_path):
    path = torch_file(tmp_path, {"w": torch.arange(1000.0)})
    whole = bytearray(path.read_bytes())
    whole[whole.index(np.arange(1000, dtype=np.float32).tobytes()) + 2000] ^= 1
    refused(put(tmp_path, bytes(whole), path.name), "checksum")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damaged_files_give_our_error_or_arrays_and_nothing_else(tmp_path, kind):
    state = {f"layer.{i}.weight": torch.arange(20.0).reshape(4, 5) for i in range(4)}
    if kind == "safetensors":
        good, name, count = torch_safetensors(state), "model.safetensors", 600
    else:
        good = torch_file(tmp_path, state, _use_new_zipfile_serialization=kind == "zip").read_bytes()
        name, count = "pytorch_model.bin", 300
    outcomes = {"refused": 0, "read": 0}
    for i in range(count):
        path = put(tmp_path, mutate(good, random.Random(i)), name)  # noqa: S311
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tensors, _ = read_tensors(path)
        except MobileViTHubError as error:
            assert "\n" not in str(error), i
            outcomes["refused"] += 1
        else:
            assert all(isinstance(t, np.ndarray) for t in tensors.values()), i
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0, outcomes


# --------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "word"), [
    ("w", np.array([1, np.nan], np.float32), "NaN"),
    ("w", np.array([1, -np.inf], np.float16), "infinity"),
    ("bn.running_var", np.array([1, -1e-3], np.float32), "negative variance"),
    ("w", np.array([1, 2], np.int64), "int64"),
    ("w", np.array([1, 2], np.complex64), "complex64"),
    ("w", np.array([True]), "bool"),
])  # fmt: skip
def test_values_that_no_weights_have_are_refused(name, value, word):
    good = np.ones(2, np.float32)
    with pytest.raises(CheckpointError, match=word) as caught:
        check_values({"first": good, name: value, "last": good}, "file")
    assert caught.value.field == name
    assert caught.value.mismatched == [name]


def test_values_that_weights_do_have_pass():
    check_values(
        {"running_mean": np.array([-1.0]), "num_batches_tracked": np.array(3), "running_var": np.zeros(0)}, "f"
    )


def test_long_lists_are_cut():
    assert listed(["b", "a"]) == "a, b"
    assert listed(f"n{i}" for i in range(9)) == "n0, n1, n2, n3, n4 and 4 more"
