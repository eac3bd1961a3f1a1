"""Files of the Keras twin: folders that open everywhere, Keras' own formats, old TensorFlow weights, the Hub."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import reference
from hub_server import HubServer
from keras_networks import (
    BACKBONES,
    CLASSIFIERS,
    MODELS,
    QUIET,
    VERSIONS,
    awake,
    fresh_process,
    images,
    keras,
    numpy,
    run,
    same_values,
    tiny,
    tiny_config,
    tiny_folder,
)

from mobilevit_hub.checkpoints import save_checkpoint
from mobilevit_hub.errors import (
    CheckpointError,
    ConfigError,
    MobileViTHubWarning,
    NotFoundError,
    SaveError,
)
from mobilevit_hub.presets import list_presets
from mobilevit_hub.tensors import read_tensors, to_safetensors

pytestmark = [pytest.mark.tf, QUIET]


def pytorch_class(version):
    from mobilevit_hub import pt

    return getattr(pt, ("MobileViTForImageClassification", "MobileViTV2ForImageClassification")[version - 1])


def pytorch_logits(model, pixels):
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))).logits.numpy()


# --------------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_folder_brings_back_every_weight(version, tmp_path):
    model = tiny(version)
    model.save_pretrained(tmp_path / "one", card="---\n---\nA card.\n")
    again = CLASSIFIERS[version].from_pretrained(tmp_path / "one")
    assert same_values(model, again)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert json.loads((tmp_path / "one" / "config.json").read_text())["architectures"] == [
        CLASSIFIERS[version].__name__.removeprefix("TF")
    ]
    again.save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parity
@VERSIONS
def test_both_twins_write_the_same_bytes(version, tmp_path):
    """Weights, config and the id that ties them together."""
    folder = tiny_folder(
        tmp_path / "first", version, hidden_dropout_prob=0.05, id2label={0: "cat", 1: "dög"}, num_labels=None
    )
    CLASSIFIERS[version].from_pretrained(folder).save_pretrained(tmp_path / "keras")
    pytorch_class(version).from_pretrained(folder).save_pretrained(tmp_path / "torch")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "keras" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes(), name
    tensors, metadata = read_tensors(tmp_path / "keras" / "model.safetensors")
    first, _ = read_tensors(folder / "model.safetensors")
    assert metadata["format"] == "pt" and tensors.keys() == first.keys()
    assert all(np.array_equal(tensors[name], first[name]) for name in first)


@pytest.mark.parity
@VERSIONS
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_both_twins_write_the_same_half_precision_bytes(version, kind, tmp_path):
    import torch

    folder = tiny_folder(tmp_path / "first", version)
    model = CLASSIFIERS[version].from_pretrained(folder, dtype=kind)
    twin = pytorch_class(version).from_pretrained(folder)
    twin.base_model.to(getattr(torch, kind))  # all but the classifier, which stays in float32 in Keras
    model.save_pretrained(tmp_path / "keras")
    twin.save_pretrained(tmp_path / "torch")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "keras" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes(), name


@pytest.mark.parity
@VERSIONS
def test_what_keras_writes_opens_in_pytorch_and_in_stock_transformers_and_back(version, tmp_path):
    import transformers

    pixels = images(2, 64, 128)  # whose maps are even, as stock version 2 needs them
    model = tiny(version, n_attn_blocks=[2, 4, 3])  # which stock version 1 does not ask for
    expected = run(model, pixels)
    model.save_pretrained(tmp_path / "keras")
    twin = pytorch_class(version).from_pretrained(tmp_path / "keras")
    assert reference.figure(pytorch_logits(twin, pixels), expected) < 1e-4
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "keras")
    assert reference.figure(pytorch_logits(stock, pixels), expected) < 1e-4
    for source, name in ((twin, "torch"), (stock, "stock")):
        source.save_pretrained(tmp_path / name)
        assert same_values(CLASSIFIERS[version].from_pretrained(tmp_path / name), model)


@VERSIONS
def test_networks_without_a_classifier_take_the_weights_that_they_need(version, tmp_path):
    folder = tiny_folder(tmp_path / "full", version)
    full = CLASSIFIERS[version].from_pretrained(folder)
    for cls in (MODELS, BACKBONES):
        model = cls[version].from_pretrained(folder)
        stem = f"{'' if cls is MODELS else model.base_model_prefix + '.'}conv_stem.convolution.weight"
        assert stem in model.named_weights()
        model.save_pretrained(tmp_path / cls[version].__name__)
        assert same_values(cls[version].from_pretrained(tmp_path / cls[version].__name__), model)
    with pytest.warns(MobileViTHubWarning, match="classifier for 7 labels is new"):
        again = CLASSIFIERS[version].from_pretrained(tmp_path / MODELS[version].__name__, num_labels=7)
    assert same_values(again.backbone, full.backbone)


def test_embedded_checkpoints_open_by_their_alias():
    embedded = [preset for preset in list_presets() if preset.folder and not preset.unavailable]
    for preset in embedded:
        model = CLASSIFIERS[1 if preset.model_type == "mobilevit" else 2].from_pretrained(preset.name)
        assert model.config.num_labels == preset.num_labels


# --------------------------------------------------------------------------------------------------
# Strict loading
# --------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    """Changes the tensors of a folder and forgets the id that ties them to the config."""
    tensors, _ = read_tensors(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").write_bytes(to_safetensors(tensors, {"format": "pt"}))
    return folder


KERNEL = {
    1: "mobilevit.encoder.layer.3.conv_kxk.convolution.weight",
    2: "mobilevitv2.encoder.layer.3.conv_1x1.convolution.weight",
}


@VERSIONS
@pytest.mark.parametrize("kind", ["missing", "unexpected", "mismatched"])
def test_tensors_that_do_not_fit_are_refused_by_name(version, kind, tmp_path):
    name = KERNEL[version]
    change = {
        "missing": lambda tensors: tensors.pop(name),
        "unexpected": lambda tensors: tensors.update({"head.fc.weight": np.zeros(3, np.float32)}),
        "mismatched": lambda tensors: tensors.update({name: tensors[name][1:]}),
    }[kind]
    folder = rewrite(tiny_folder(tmp_path, version), change)
    culprit = "head.fc.weight" if kind == "unexpected" else name
    with pytest.raises(CheckpointError, match=culprit) as caught:
        CLASSIFIERS[version].from_pretrained(folder)
    assert len(getattr(caught.value, kind)) == 1
    _, report = CLASSIFIERS[version].from_pretrained(folder, strict=False)
    assert len(getattr(report, kind)) == 1


def test_a_transposed_kernel_is_refused(tmp_path):
    name = "mobilevit.encoder.layer.2.transformer.layer.0.intermediate.dense.weight"
    folder = rewrite(tiny_folder(tmp_path, 1), lambda tensors: tensors.update({name: tensors[name].T.copy()}))
    with pytest.raises(CheckpointError, match=r"found \[16, 32\], expected \[32, 16\]"):
        CLASSIFIERS[1].from_pretrained(folder)


def test_the_other_version_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model_type is 'mobilevit', but TFMobileViTV2ForImageClassification"):
        CLASSIFIERS[2].from_pretrained(tiny_folder(tmp_path, 1))


def test_a_folder_that_is_not_there():
    with pytest.raises(NotFoundError, match="no folder"):
        CLASSIFIERS[1].from_pretrained("./nowhere")


@VERSIONS
def test_a_new_classifier_is_announced_once_and_the_rest_is_loaded(version, tmp_path):
    folder = tiny_folder(tmp_path, version)
    old = CLASSIFIERS[version].from_pretrained(folder)
    with pytest.warns(MobileViTHubWarning) as said:
        model = CLASSIFIERS[version].from_pretrained(folder, num_labels=3)
    assert [str(w.message) for w in said] == [
        "The checkpoint classifies 7 labels; the classifier for 3 labels is new and random. Every other weight was loaded."
    ]
    assert model.output_shape == (None, 3) and same_values(model.backbone, old.backbone)
    with pytest.warns(MobileViTHubWarning, match="new and random"):
        model = CLASSIFIERS[version].from_pretrained(folder, id2label={0: "cat", 1: "dog"})
    assert model.config.id2label == {0: "cat", 1: "dog"} and model.config.label2id == {"cat": 0, "dog": 1}
    assert same_values(CLASSIFIERS[version].from_pretrained(folder, num_labels=7), old)


def test_weights_that_cannot_be_saved(tmp_path):
    model = tiny(1)
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    model.named_weights()["classifier.bias"].variable.assign(np.full(7, np.nan))
    with pytest.raises(CheckpointError, match=r"classifier.bias.* contains NaN"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --------------------------------------------------------------------------------------------------
# Keras' own formats
# --------------------------------------------------------------------------------------------------

FRESH = """
import sys
import numpy as np
import keras
import mobilevit_hub.tf

folder, outputs = sys.argv[1], {}
pixels = np.load(folder + "/pixels.npy")
for version in ("1", "2"):
    model = keras.saving.load_model(f"{folder}/{version}.keras")
    outputs["keras" + version] = model.predict(pixels, verbose=0)
    outputs["trainable" + version] = len(model.trainable_weights)
    outputs["optimizer" + version] = np.concatenate([np.ravel(v) for v in model.optimizer.variables])
    again = type(model).from_config(model.get_config())
    again.load_weights(f"{folder}/{version}.weights.h5")
    outputs["weights" + version] = np.asarray(again(pixels, training=False))
assert "torch" not in sys.modules
np.savez(folder + "/outputs.npz", **outputs)
"""


def test_keras_files_open_in_a_fresh_process(tmp_path):
    """With predictions, the state of the optimizer and what is frozen; PyTorch cannot be imported there."""
    pixels, models = images(2, 64, 80), {}
    np.save(tmp_path / "pixels.npy", pixels)
    for version in (1, 2):
        models[version] = model = tiny(version)
        model.backbone.get_layer("stage1").trainable = False
        model.compile(
            keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True
        )
        model.fit(pixels, np.arange(2), verbose=0)
        model.save(tmp_path / f"{version}.keras")
        model.save_weights(tmp_path / f"{version}.weights.h5")
    fresh_process(FRESH, tmp_path, hide=("torch",))
    outputs = np.load(tmp_path / "outputs.npz")
    for version, model in models.items():
        expected = run(model, pixels)
        np.testing.assert_allclose(outputs[f"keras{version}"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(outputs[f"weights{version}"], expected)
        assert outputs[f"trainable{version}"] == len(model.trainable_weights) < len(tiny(version).trainable_weights)
        state = np.concatenate([np.ravel(numpy(v + 0)) for v in model.optimizer.variables])
        np.testing.assert_array_equal(outputs[f"optimizer{version}"], state)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@VERSIONS
def test_weights_of_another_network_are_refused_by_keras(version, tmp_path):
    tiny(version).save_weights(tmp_path / "tiny.weights.h5")
    with pytest.raises(ValueError, match="classifier"):
        CLASSIFIERS[version](tiny_config(version, num_labels=9)).load_weights(tmp_path / "tiny.weights.h5")


@VERSIONS
def test_a_saved_model_for_any_size(version, tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = tiny(version)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    for size in ((64, 64), (75, 101)):
        pixels = images(2, *size)
        np.testing.assert_allclose(exported.serve(pixels).numpy(), run(model, pixels), rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# Old files
# --------------------------------------------------------------------------------------------------


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

    expect("1 missing.*conv_stem.normalization.weight", lambda f: f.pop(f"{scope}/conv_stem/normalization/gamma:0"))
    expect("1 missing.*conv_stem.normalization.weight", elsewhere)
    expect("stores fewer", external)
    expect("stores fewer", bomb)
    expect(
        "1 unexpected.*mobilevit.extra.weight",
        lambda f: f.create_dataset(f"{scope}/extra/gamma:0", data=np.ones(3, "f4")),
    )
    expect("is no weight of a MobileViT", lambda f: f.create_dataset("vit/embeddings/kernel:0", data=np.ones(3, "f4")))
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
    hub.add("apple/none", {"config.json": files["config.json"]})
    with pytest.raises(NotFoundError, match="'apple/none' has neither"):
        CLASSIFIERS[1].from_pretrained("apple/none", cache_dir=tmp_path / "cache")


# --------------------------------------------------------------------------------------------------
# Publishing
# --------------------------------------------------------------------------------------------------


class _Receiver(BaseHTTPRequestHandler):
    """The part of the Hub that takes commits."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        answer = {}
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            answer = {"url": f"{self.server.url}/me/new", "name": "me/new"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"success": True, "commitUrl": f"{self.server.url}/me/new/commit/0123", "commitOid": "0123"}
        self.reply(answer)

    def do_GET(self):
        self.reply({})

    def reply(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_publishing_uploads_what_saving_writes(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.requests, server.created, server.files = [], [], {}
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        model = tiny(1)
        address = model.push_to_hub("me/new", token="hf_of_me", private=True, card="# A card\n")  # noqa: S106
    finally:
        server.shutdown()
        server.server_close()
    assert address == f"{server.url}/me/new/commit/0123"
    assert server.created[0]["visibility"] == "private" and server.created[0]["name"] == "new"
    assert {token for _, token in server.requests} == {"Bearer hf_of_me"}
    model.save_pretrained(tmp_path, card="# A card\n")
    assert server.files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


# --------------------------------------------------------------------------------------------------
# One framework without the other
# --------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
import numpy as np
import mobilevit_hub.tf as twin
from mobilevit_hub import checkpoints, configuration, data, image_processing, images, presets, recipes, runtimes, tensors
from mobilevit_hub.errors import MissingDependencyError

folder = sys.argv[1]
for version, cls in (("1", twin.TFMobileViTForImageClassification), ("2", twin.TFMobileViTV2ForImageClassification)):
    model = cls.from_pretrained(f"{folder}/{version}")
    np.save(f"{folder}/{version}.npy", model.predict(np.load(folder + "/pixels.npy"), verbose=0))
    processor = image_processing.processor_for(288, 256, "bilinear", "bgr")
    assert processor(np.zeros((300, 300, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 256, 256)
    model.save_pretrained(f"{folder}/saved{version}", processor=processor)
try:
    twin.TFMobileViTForImageClassification.from_pretrained(folder + "/pickled")
except MissingDependencyError as error:
    print(error)
twin.TFMobileViTForImageClassification.from_pretrained(folder + "/both")
assert "torch" not in sys.modules
"""


def test_keras_needs_no_pytorch(tmp_path):
    """Loading, predicting, preparing images and saving; of two old files the one that can be read."""
    pixels = images(2, 64, 64)
    np.save(tmp_path / "pixels.npy", pixels)
    for version in (1, 2):
        tiny_folder(tmp_path / str(version), version)
    folder, _ = old_folder(tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4, which is never read")
    (tmp_path / "pickled").mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(folder / name, tmp_path / "pickled")
    done = fresh_process(WITHOUT_TORCH, tmp_path, hide=("torch", "torchvision"))
    assert "PyTorch was not found" not in done.stderr + done.stdout
    assert (
        "Reading pytorch_model.bin needs torch" in done.stdout and 'pip install "mobilevit_hub[torch]"' in done.stdout
    )
    for version in (1, 2):
        model = CLASSIFIERS[version].from_pretrained(tmp_path / f"saved{version}")
        np.testing.assert_allclose(np.load(tmp_path / f"{version}.npy"), run(model, pixels), rtol=1e-4, atol=1e-5)
        assert same_values(model, CLASSIFIERS[version].from_pretrained(tmp_path / str(version)))


WITHOUT_KERAS = """
import sys
import mobilevit_hub
from mobilevit_hub.errors import MissingDependencyError

model = mobilevit_hub.MobileViTForImageClassification.from_pretrained(sys.argv[1])
assert model.config.num_labels == 7
try:
    import mobilevit_hub.tf
except MissingDependencyError as error:
    print(error)
assert not {"keras", "tensorflow", "h5py"} & set(sys.modules) - HIDDEN
"""


@pytest.mark.torch
def test_pytorch_needs_no_keras(tmp_path):
    printed = fresh_process(WITHOUT_KERAS, tiny_folder(tmp_path, 1), hide=("keras", "tensorflow", "h5py")).stdout
    assert printed.strip() == (
        'mobilevit_hub.tf needs keras, which is not installed. Install it with: pip install "mobilevit_hub[tf]".'
    )


def test_keras_without_its_backend_is_explained():
    code = """
    from mobilevit_hub.errors import MissingDependencyError
    try:
        import mobilevit_hub.tf
    except MissingDependencyError as error:
        print(error)
    """
    printed = fresh_process(code, hide=("tensorflow",), KERAS_BACKEND="tensorflow").stdout
    assert "needs tensorflow, the backend that Keras is set to" in printed and "mobilevit_hub[tf]" in printed


def test_importing_the_twin_says_nothing_and_leaves_the_environment_alone():
    code = "import os; before = dict(os.environ); import mobilevit_hub.tf; print(set(os.environ) ^ set(before))"
    done = fresh_process(code, hide=("torch",))
    assert "PyTorch" not in done.stderr
    assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in done.stdout
