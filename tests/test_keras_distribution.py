"""Training on several devices and in several processes: each step is that of one device with the whole batch."""

import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from keras_networks import (
    CLASSIFIERS,
    QUIET,
    assert_trained_alike,
    fresh_process,
    images,
    keras,
    layers,
    numpy,
    run,
    tiny_folder,
)
from shapes import CLASSES, save_shapes

from mobilevit_hub.checkpoints.tensors import read_tensors
from mobilevit_hub.errors import InputError
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.recipes.recipe import get_recipe
from mobilevit_hub.tf import image_dataset
from mobilevit_hub.tf.layers import BatchNormalization
from mobilevit_hub.tf.training.optimizer import AdamW
from mobilevit_hub.tf.weights import to_checkpoint
from mobilevit_hub.training.run import train

tf = pytest.importorskip("tensorflow", reason="distributes with TensorFlow")
pytestmark = [pytest.mark.tf, QUIET]

CLASSIFIER = CLASSIFIERS[2]
DROPOUTS = dict.fromkeys(("attn_dropout", "ffn_dropout", "classifier_dropout_prob"), 0.0)
BATCH, STEPS = 8, 3
TORCH = ("torch", "torchvision")  # which the processes need not spend seconds on
TWO_CPUS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_keras_distribution as test
test.on_two_devices(*sys.argv[1:])
"""
COMMAND = """
import sys
import tensorflow as tf
tf.config.run_functions_eagerly(sys.argv.pop() == "eagerly")
from mobilevit_hub.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


# --- what the processes run ----------------------------------------------------------------------------------------


class StepLosses(keras.callbacks.Callback):
    """The loss of each step; Keras itself reports the mean since the epoch began."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def whole_network(folder):
    """The classifier of a folder, ready to train, without dropout."""
    model = CLASSIFIER.from_pretrained(folder, **DROPOUTS)
    optimizer = keras.optimizers.SGD(0.002, momentum=0.9, weight_decay=0.05)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)  # else the step is traced twice
    return model


def photos_of(folder):
    """The first batches of the folder's photos."""
    recipe, processor = get_recipe(seed=1), processor_for(36, 32, "bilinear", "rgb")
    return image_dataset(folder, processor, batch_size=BATCH, recipe=recipe).take(STEPS)


def arrays():
    return images(2 * BATCH, 32, 32, seed=5), np.arange(2 * BATCH) % 3


def fit(model, photos):
    """Losses of the steps on photos, then on arrays."""
    losses = StepLosses()
    model.fit(photos_of(photos), shuffle=False, verbose=0, callbacks=[losses])
    model.fit(*arrays(), batch_size=BATCH, shuffle=False, verbose=0, callbacks=[losses])
    return losses.losses


def state(model):
    """The tensors of a model as its folder would have them."""
    weights = model.named_weights().items()
    return {name: to_checkpoint(numpy(weight.variable + 0), weight.kind) for name, weight in weights}


def tensors(folder):
    return read_tensors(folder / "model.safetensors")[0]


def on_two_devices(folder, photos, output):
    """What a user would write for the devices of one machine."""
    from pathlib import Path

    output = Path(output)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = whole_network(Path(folder))
        layer = BatchNormalization()
        layer.build((None, None, None, 4))
    losses = fit(model, photos)
    for weight in model.named_weights().values():
        one, two = strategy.experimental_local_results(weight.variable.value)
        np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=weight.name)
    model.save_pretrained(output)
    tf.config.run_functions_eagerly(True)  # what follows is done once, which no graph is worth
    pixels, labels = arrays()
    scores = model.evaluate(pixels[:11], labels[:11], batch_size=4, verbose=0, return_dict=True)
    logits = model.predict(pixels[:11], batch_size=4, verbose=0)
    tf.config.run_functions_eagerly(False)

    batch = next(
        iter(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(uneven()).unbatch().batch(5)))
    )
    normalised = tf.function(lambda part: strategy.run(layer, (part,), {"training": True}))(batch)
    parts = [part.numpy() for part in strategy.experimental_local_results(normalised)]
    np.savez(
        output / "found.npz", losses=losses, logits=logits, accuracy=scores["accuracy"], loss=scores["loss"],
        parts=[len(part) for part in parts], normalised=np.concatenate(parts), mean=numpy(layer.moving_mean + 0),
        variance=numpy(layer.moving_variance + 0), count=numpy(layer.num_batches_tracked + 0),
        updates=clipped_updates(strategy),
    )  # fmt: skip
    tf.config.run_functions_eagerly(True)
    with strategy.scope():
        by_command(folder, photos, output / "command", BATCH)


def by_command(folder, photos, output, batch_size, **options):
    """What the command does, saving after each step."""
    recipe = get_recipe(epochs=1, image_size=32, batch_size=batch_size, warmup_epochs=0.0, learning_rate=1e-4,
                        clip_norm=0.05, ema_momentum=0.3)  # fmt: skip
    return train(photos, output, model=str(folder), framework="tf", recipe=recipe, save_steps=1, progress=False,
                 **options)  # fmt: skip


def clipped_updates(strategy):
    """A variable after steps whose gradients, half of them on each device, are longer than the clip or not."""
    with strategy.scope():
        variable = keras.Variable(np.zeros(4, np.float32))
        optimizer = AdamW(0.1, 1.0, weight_decay=0.0)
        optimizer.build([variable])

    @tf.function
    def step(gradient):
        def part():
            replica = tf.distribute.get_replica_context()
            weights = [0.9, 0.1] if replica.num_replicas_in_sync == 2 else [1.0]
            share = tf.gather(tf.constant(weights), replica.replica_id_in_sync_group)
            optimizer.apply([share * gradient], [variable])

        strategy.run(part)

    for scale in (0.1, 30.0, 2.0, 0.5):
        step(tf.constant([1.0, -2.0, 0.5, 0.0]) * scale)
    return numpy(variable + 0)


def uneven():
    """Five small maps far from zero, which two devices share as three and two."""
    return 1000 + np.random.default_rng(3).normal(size=(5, 2, 2, 4)).astype(np.float32)


def free_ports(count):
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# --- tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Where all training starts."""
    folder = tiny_folder(tmp_path_factory.mktemp("start"), 2, num_labels=None, id2label=dict(enumerate(CLASSES)),
                         **DROPOUTS)  # fmt: skip
    processor_for(36, 32, "bilinear", "rgb").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(start, photos, tmp_path_factory):
    """Folder and log of the command on one device, with the doubled batch."""
    folder = tmp_path_factory.mktemp("one")
    tf.config.run_functions_eagerly(True)
    log = by_command(start, photos, folder, 2 * BATCH)
    tf.config.run_functions_eagerly(False)
    return folder, log


@pytest.fixture(scope="module")
def mirrored(start, photos, tmp_path_factory):
    """What two devices found, their folder, the model of one device and its losses, where both started."""
    folder = start
    output = tmp_path_factory.mktemp("mirrored")
    with ThreadPoolExecutor() as pool:
        child = pool.submit(fresh_process, TWO_CPUS, folder, photos, output, hide=TORCH, CUDA_VISIBLE_DEVICES="")
        model = whole_network(folder)
        model.run_eagerly = True
        losses = fit(model, photos)
        child.result()
    return np.load(output / "found.npz"), output, model, losses, folder


def test_losses_of_two_devices_are_those_of_one(mirrored):
    found, _, _, losses, _ = mirrored
    assert len(losses) == STEPS + 2
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-4)
    assert max(losses) > 1.05 * min(losses)


def test_weights_and_statistics_of_two_devices_are_those_of_one(mirrored):
    _, folder, model, _, start = mirrored
    assert_trained_alike(tensors(start), tensors(folder), state(model))
    trained = CLASSIFIER.from_pretrained(folder)
    counts = {int(numpy(norm.num_batches_tracked + 0)) for norm in layers(trained, BatchNormalization)}
    assert counts == {100 + STEPS + 2}


def test_gradients_of_two_devices_are_clipped_together(mirrored):
    expected = clipped_updates(tf.distribute.get_strategy())
    np.testing.assert_allclose(mirrored[0]["updates"], expected, rtol=1e-5, atol=1e-7)
    limited = keras.optimizers.AdamW(0.1, weight_decay=0.0, global_clipnorm=1.0)
    variable = keras.Variable(np.zeros(4, np.float32))
    for scale in (0.1, 30.0, 2.0, 0.5):
        limited.apply([keras.ops.array([1.0, -2.0, 0.5, 0.0]) * scale], [variable])
    np.testing.assert_allclose(expected, numpy(variable + 0), rtol=1e-5, atol=1e-7)


def test_the_command_on_two_devices_is_that_of_one_with_the_doubled_batch(mirrored, one, photos):
    _, output, _, _, folder = mirrored
    two = json.loads((output / "command" / "training_log.json").read_text())
    assert two["machine"].startswith("2 × ") and two["steps"] == one[1]["steps"] == STEPS
    losses = [[record["loss"] for record in log["history"] if "loss" in record] for log in (two, one[1])]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
    assert_trained_alike(*(tensors(path) for path in (folder, output / "command", one[0])))
    shutil.rmtree(output / "command" / "checkpoints" / f"checkpoint-{STEPS}")
    with pytest.raises(InputError, match="was started on 2 devices and here are 1"):
        by_command(folder, photos, output / "command", BATCH, resume=True)


def test_two_devices_predict_and_evaluate(mirrored):
    found, folder, _, _, _ = mirrored
    pixels, labels = (array[:11] for array in arrays())
    logits = run(CLASSIFIER.from_pretrained(folder), pixels)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    each = -logits[range(11), labels] + np.log(np.exp(logits).sum(axis=1))
    assert found["loss"] == pytest.approx(each.mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))


def test_uneven_parts_are_normalised_together(mirrored):
    found = mirrored[0]
    values = uneven().astype(np.float64)
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
    assert found["parts"].tolist() == [3, 2]
    # float32 holds 1000 with an error of 6e-5.
    np.testing.assert_allclose(found["normalised"], (values - mean) / np.sqrt(variance + 1e-5), atol=1e-3)
    np.testing.assert_allclose(found["mean"], 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(found["variance"], 0.9 + 0.1 * variance * 20 / 19, rtol=1e-5)
    assert found["count"] == 1


@pytest.mark.parametrize("how", ["eagerly", pytest.param("in a graph", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_doubled_batch(start, one, photos, tmp_path, how):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    options = {"model": start, "output": tmp_path / "two", "framework": "tf", "epochs": 1, "image-size": 32,
               "batch-size": BATCH, "warmup-epochs": 0, "learning-rate": 1e-4, "clip-norm": 0.05, "ema-momentum": 0.3,
               "save-steps": 1}  # fmt: skip
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]

    def worker(index):
        task = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        words = ("train", photos, *flags, "--json", "--quiet", how)
        return fresh_process(COMMAND, *words, hide=TORCH, CUDA_VISIBLE_DEVICES="", TF_CONFIG=task).stdout

    with ThreadPoolExecutor() as pool:
        printed = list(pool.map(worker, range(2)))
    assert json.loads(printed[0])["machine"].startswith("2 × ") and printed[1] == ""
    logs = [json.loads((tmp_path / "two" / "training_log.json").read_text()), one[1]]
    losses = [[record["loss"] for record in log["history"] if "loss" in record] for log in logs]
    assert len(losses[1]) == STEPS and max(losses[1]) > 1.05 * min(losses[1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=2e-5)
    assert logs[0]["top1"] == logs[1]["top1"]
    assert_trained_alike(*(tensors(path) for path in (start, tmp_path / "two", one[0])))
