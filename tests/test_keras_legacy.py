"""Weights that the old TensorFlow classes of transformers wrote, and pickled ones, read by the Keras twin."""

import shutil

import numpy as np
import pytest
from hub_server import HubServer
from keras_networks import (
    BACKBONES,
    CLASSIFIERS,
    QUIET,
    awake,
    fresh_process,
    images,
    run,
    same_values,
    tiny_config,
    tiny_folder,
)

from mobilevit_hub.checkpoints.saving import save_checkpoint
from mobilevit_hub.checkpoints.tensors import read_tensors
from mobilevit_hub.errors import CheckpointError, NotFoundError

pytestmark = [pytest.mark.tf, QUIET]


def write_h5(path, tensors, model="tf_mobile_vi_t_for_image_classification"):
    """What `TFMobileViTForImageClassification.save_pretrained` of transformers 4 wrote.

    One group for each layer of the model; in it Keras' variable names, in which the layers of a list
    are called `layer.0`, and its layouts: `(kh, kw, I, O)` and `(in, out)`.
    """
    import h5py

    with h5py.File(path, "w") as file:
        groups = {"mobilevit": [], "dropout": [], "classifier": []}
        for name, tensor in tensors.items():
            *place, leaf = name.split(".")
            if leaf == "num_batches_tracked":
                continue
            norm = tensor.ndim == 1 and any("norm" in part for part in place[-1:])
            leaf = {"weight": "gamma" if norm else "kernel", "bias": "beta" if norm else "bias"}.get(leaf, leaf)
            leaf = {"running_mean": "moving_mean", "running_var": "moving_variance"}.get(leaf, leaf)
            axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim, (0,))
            scope = "/".join(place)
            for i in range(10):
                scope = scope.replace(f"layer/{i}", f"layer.{i}")
            variable = f"{model}/{scope}/{leaf}:0"
            group = place[0]
            file.create_dataset(f"{group}/{variable}", data=tensor.transpose(axes))
            groups[group].append(variable.encode())
        file.attrs["layer_names"] = [group.encode() for group in groups]
        for group, names in groups.items():
            file.require_group(group).attrs["weight_names"] = names


def old_folder(folder):
    """A folder as transformers 4 wrote it for TensorFlow, and the tensors in it."""
    tiny_folder(folder, 1)
    tensors, _ = read_tensors(folder / "model.safetensors")
    write_h5(folder / "tf_model.h5", tensors)
    (folder / "model.safetensors").unlink()
    return folder, tensors


@pytest.mark.alone
def test_weights_of_the_old_tensorflow_classes(tmp_path):
    folder, tensors = old_folder(tmp_path)
    model = CLASSIFIERS[1].from_pretrained(folder)
    weights = {n: w for n, w in model.named_weights().items() if not n.endswith("num_batches_tracked")}
    assert weights.keys() == {n for n in tensors if not n.endswith("num_batches_tracked")}
    save_checkpoint(tmp_path / "new", tensors, model.config)
    pixels = images(2, 64, 64)
    assert np.array_equal(run(model, pixels), run(CLASSIFIERS[1].from_pretrained(tmp_path / "new"), pixels))
    assert list(run(BACKBONES[1].from_pretrained(folder), pixels)) == ["stage5"]


def test_an_old_file_is_read_as_strictly_as_a_new_one(tmp_path):
    import h5py

    folder, _ = old_folder(tmp_path)
    path = folder / "tf_model.h5"
    whole = path.read_bytes()
    scope = "mobilevit/tf_mobile_vi_t_for_image_classification/mobilevit"

    def expect(message, change=None):
        if change is not None:
            with h5py.File(path, "a") as file:
                change(file)
        with pytest.raises(CheckpointError, match=message):
            CLASSIFIERS[1].from_pretrained(folder)
        path.write_bytes(whole)

    def external(file):
        del file[f"{scope}/conv_stem/normalization/gamma:0"]
        file.create_dataset(
            f"{scope}/conv_stem/normalization/gamma:0", (8,), "f4", external=[(str(folder / "config.json"), 0, 32)]
        )

    def elsewhere(file):
        del file[f"{scope}/conv_stem/normalization/gamma:0"]
        file[f"{scope}/conv_stem/normalization/gamma:0"] = h5py.ExternalLink(str(folder / "other.h5"), "/gamma")

    def bomb(file):
        file.create_dataset(f"{scope}/bomb/kernel:0", (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")

    def twice(file):
        file[f"copy/{scope}/conv_stem/normalization/gamma:0"] = np.ones(8, "f4")

    expect("1 missing.*conv_stem.normalization.weight", lambda f: f.pop(f"{scope}/conv_stem/normalization/gamma:0"))
    expect("is a link to another file.*other.h5.*refused", elsewhere)
    expect("stores fewer", external)
    expect("stores fewer", bomb)
    expect("second 'mobilevit.conv_stem.normalization.weight'", twice)
    for value in ("text", np.arange(3), h5py.Empty("f4")):
        expect("no array of floating point", lambda f, value=value: f.create_dataset(f"{scope}/x/gamma:0", data=value))
    expect(
        "1 unexpected.*mobilevit.extra.weight",
        lambda f: f.create_dataset(f"{scope}/extra/gamma:0", data=np.ones(3, "f4")),
    )
    expect("is no weight of a MobileViT", lambda f: f.create_dataset("vit/embeddings/kernel:0", data=np.ones(3, "f4")))
    expect(
        "contains NaN", lambda f: f[f"{scope}/conv_stem/normalization/gamma:0"].write_direct(np.full(8, np.nan, "f4"))
    )
    path.write_bytes(whole[: len(whole) // 2])
    expect("damaged HDF5 file")
    path.write_bytes(b"not HDF5 at all")
    expect("damaged HDF5 file")


def test_safetensors_come_before_the_old_file(tmp_path):
    folder, _ = old_folder(tmp_path / "old")
    new = tiny_folder(tmp_path / "new", 1, seed=5)
    shutil.copy(folder / "tf_model.h5", new)
    assert same_values(CLASSIFIERS[1].from_pretrained(new), awake(CLASSIFIERS[1](tiny_config(1)), seed=5))


@pytest.mark.parity
def test_pickled_pytorch_weights_open_where_pytorch_is_installed(tmp_path):
    import torch

    folder, tensors = old_folder(tmp_path)
    (folder / "tf_model.h5").unlink()
    torch.save(
        {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, folder / "pytorch_model.bin"
    )
    assert same_values(CLASSIFIERS[1].from_pretrained(folder), awake(CLASSIFIERS[1](tiny_config(1))))


WITHOUT_TORCH = """
import sys
import mobilevit_hub.tf as twin
from mobilevit_hub.errors import MissingDependencyError

twin.TFMobileViTForImageClassification.from_pretrained(sys.argv[1] + "/both").save_pretrained(sys.argv[1] + "/saved")
try:
    twin.TFMobileViTForImageClassification.from_pretrained(sys.argv[1] + "/pickled")
except MissingDependencyError as error:
    print(error)
"""


def test_without_pytorch_the_old_file_is_read_and_a_pickled_one_is_explained(tmp_path):
    folder, _ = old_folder(tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4, which is never read")
    (tmp_path / "pickled").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(folder / name, tmp_path / "pickled")
    printed = fresh_process(WITHOUT_TORCH, tmp_path, hide=("torch",)).stdout
    assert "Reading pytorch_model.bin needs torch" in printed and 'pip install "mobilevit_hub[torch]"' in printed
    (folder / "pytorch_model.bin").unlink()
    saved, old = (CLASSIFIERS[1].from_pretrained(place) for place in (tmp_path / "saved", folder))
    assert same_values(saved, old)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield server


def test_the_hub_is_asked_for_safetensors_first_and_then_for_the_old_file(hub, tmp_path):
    folder, _ = old_folder(tmp_path / "old")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("apple/old", files)
    model = CLASSIFIERS[1].from_pretrained("apple/old", cache_dir=tmp_path / "cache")
    assert same_values(model, CLASSIFIERS[1].from_pretrained(folder))
    new = tiny_folder(tmp_path / "new", 1)
    hub.add("apple/new", files | {path.name: path.read_bytes() for path in new.iterdir()})
    hub.requests.clear()
    CLASSIFIERS[1].from_pretrained("apple/new", cache_dir=tmp_path / "cache")
    assert "tf_model.h5" not in hub.asked_for()
    # Offline, from a cache that the old classes filled: it does not say that there is no other file.
    for name in ("model.safetensors", "pytorch_model.bin"):
        for marker in (tmp_path / "cache" / "models--apple--old" / ".no_exist").rglob(name):
            marker.unlink()
    hub.requests.clear()
    again = CLASSIFIERS[1].from_pretrained("apple/old", cache_dir=tmp_path / "cache", local_files_only=True)
    assert same_values(again, model) and not hub.requests
    hub.add("apple/none", {"config.json": files["config.json"]})
    with pytest.raises(NotFoundError, match="apple/none: has no model.safetensors or pytorch_model.bin"):
        CLASSIFIERS[1].from_pretrained("apple/none", cache_dir=tmp_path / "cache")
