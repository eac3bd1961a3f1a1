"""Keras' own formats: `.keras`, `.weights.h5` and saved models; and one framework without the other."""

import numpy as np
import pytest
from keras_networks import (
    CLASSIFIERS,
    QUIET,
    VERSIONS,
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

from mobilevit_hub.cli.main import main

pytestmark = [pytest.mark.tf, QUIET]


WITHOUT_TORCH = """
import os
import sys
before = dict(os.environ)
import mobilevit_hub.tf as twin
changed = set(os.environ) ^ set(before)
import keras
import numpy as np
from mobilevit_hub import data, presets, recipes
from mobilevit_hub.checkpoints import loading, tensors
from mobilevit_hub.images import processor as image_processing

folder, outputs = sys.argv[1], {}
pixels = np.load(folder + "/pixels.npy")
for version, cls in (("1", twin.TFMobileViTForImageClassification), ("2", twin.TFMobileViTV2ForImageClassification)):
    model = cls.from_pretrained(f"{folder}/{version}")
    outputs["folder" + version] = model.predict(pixels, verbose=0)
    processor = image_processing.processor_for(288, 256, "bilinear", "bgr")
    assert processor(np.zeros((300, 300, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 256, 256)
    model.save_pretrained(f"{folder}/saved{version}", processor=processor)

    model = keras.saving.load_model(f"{folder}/{version}.keras")
    outputs["keras" + version] = np.asarray(model(pixels, training=False))
    outputs["trainable" + version] = len(model.trainable_weights)
    outputs["optimizer" + version] = np.concatenate([np.ravel(v) for v in model.optimizer.variables])
    again = type(model).from_config(model.get_config())
    again.load_weights(f"{folder}/{version}.weights.h5")
    outputs["weights" + version] = np.asarray(again(pixels, training=False))
np.savez(folder + "/outputs.npz", **outputs)
print(sorted(changed))
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Models with what a process that cannot import PyTorch made of their files, its folder and what it printed."""
    folder, pixels, models = tmp_path_factory.mktemp("files"), images(2, 64, 80), {}
    np.save(folder / "pixels.npy", pixels)
    for version in (1, 2):
        models[version] = model = tiny(version)
        tiny_folder(folder / str(version), version)
        model.backbone.get_layer("stage1").trainable = False
        model.compile(
            keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True
        )
        model.fit(pixels, np.arange(2), verbose=0)
        model.save(folder / f"{version}.keras")
        model.save_weights(folder / f"{version}.weights.h5")
    done = fresh_process(WITHOUT_TORCH, folder, hide=("torch", "torchvision"))
    return models, np.load(folder / "outputs.npz"), folder, done


@VERSIONS
def test_keras_files_open_in_a_fresh_process(version, without_torch):
    """With predictions, the state of the optimizer and what is frozen; PyTorch cannot be imported there."""
    models, outputs, folder, _ = without_torch
    model = models[version]
    expected = run(model, np.load(folder / "pixels.npy"))
    np.testing.assert_allclose(outputs[f"keras{version}"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs[f"weights{version}"], expected)
    assert outputs[f"trainable{version}"] == len(model.trainable_weights) < len(tiny(version).trainable_weights)
    state = np.concatenate([np.ravel(numpy(v + 0)) for v in model.optimizer.variables])
    np.testing.assert_array_equal(outputs[f"optimizer{version}"], state)


@VERSIONS
def test_keras_needs_no_pytorch(version, without_torch):
    """Loading, predicting, preparing images and saving."""
    _, outputs, folder, done = without_torch
    assert "PyTorch was not found" not in done.stderr + done.stdout
    model = CLASSIFIERS[version].from_pretrained(folder / f"saved{version}")
    pixels = np.load(folder / "pixels.npy")
    np.testing.assert_allclose(outputs[f"folder{version}"], run(model, pixels), rtol=1e-4, atol=1e-5)
    assert same_values(model, CLASSIFIERS[version].from_pretrained(folder / str(version)))


def test_importing_the_twin_says_nothing_and_leaves_the_environment_alone(without_torch):
    done = without_torch[-1]
    assert "PyTorch" not in done.stderr
    assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in done.stdout


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


@pytest.mark.alone
def test_the_command_writes_a_keras_file_and_takes_it_back(tmp_path):
    folder = tiny_folder(tmp_path / "folder", 2)
    assert main(["convert", str(folder), str(tmp_path / "m.keras"), "--no-verify"]) == 0
    assert main(["convert", str(tmp_path / "m.keras"), str(tmp_path / "back"), "--no-verify"]) == 0
    assert same_values(*(CLASSIFIERS[2].from_pretrained(path) for path in (folder, tmp_path / "back")))


# --------------------------------------------------------------------------------------------------
# One framework without the other
# --------------------------------------------------------------------------------------------------

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
"""


@pytest.mark.parity
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
