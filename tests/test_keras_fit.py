"""Fine-tuning as Keras users do it: `fit` on photos of a folder, callbacks, weighted and mixed labels."""

import shutil

import numpy as np
import pytest
from keras_networks import CLASSIFIERS, QUIET, images, keras, numpy, run, tiny
from pictures import encode
from shapes import TRAIN_COUNT, save_shapes

from mobilevit_hub.data.opening import open_images
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.recipes.recipe import get_recipe
from mobilevit_hub.tf import image_dataset

pytestmark = [pytest.mark.tf, QUIET]

EAGERLY = pytest.mark.usefixtures("eagerly")
PROCESSOR = processor_for(36, 32, "bilinear", "rgb")
PLAIN = get_recipe(crop_area=1.0, flip=False, seed=1)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def held_out(photos):
    return image_dataset(photos, PROCESSOR, split="validation", batch_size=5)


def training_photos(data, batch_size=16, **options):
    return image_dataset(data, PROCESSOR, batch_size=batch_size, recipe=PLAIN, **options)


def arrays(dataset):
    """All batches of one pass, joined."""
    pixels, labels = zip(*((x.numpy(), y.numpy()) for x, y in dataset), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def head_only(optimizer=None, loss=LOSS):
    """A classifier whose head learns; the network below stays as it is."""
    model = tiny(2, num_labels=3)
    model.backbone.trainable = False
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)  # else the step is traced twice
    return model


def fit(model, data, **options):
    return model.fit(data, shuffle=False, verbose=0, **options)


def state(model):
    return {name: numpy(weight.variable + 0) for name, weight in model.named_weights().items()}


def changed(before, after):
    return {name for name, value in before.items() if not np.array_equal(value, after[name])}


def cross_entropy(logits, targets):
    """Of each row, `targets` being probabilities."""
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return -(targets * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1)


# --- freezing ------------------------------------------------------------------------------------------------------


def test_head_first_then_the_network_without_its_statistics(photos):
    model, data = head_only(), training_photos(photos)
    start = state(model)
    losses = fit(model, data, epochs=3).history["loss"]
    assert losses[-1] < losses[0]
    assert changed(start, state(model)) == {"classifier.weight", "classifier.bias"}

    model.backbone.trainable = True
    model.freeze_norms()
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    middle = state(model)
    fit(model, data)
    moved = changed(middle, state(model))
    assert not any(".normalization." in name for name in moved)
    assert {name for name in middle if name.endswith("convolution.weight")} < moved


# --- losses and scores ---------------------------------------------------------------------------------------------


@EAGERLY
def test_scores_are_those_of_the_formula(held_out):
    model = head_only()
    scores = model.evaluate(held_out, return_dict=True, verbose=0)
    pixels, labels = arrays(held_out)
    logits = run(model, pixels)
    np.testing.assert_allclose(model.predict(held_out, verbose=0), logits, atol=1e-5)
    assert scores["accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    assert scores["loss"] == pytest.approx(cross_entropy(logits, np.eye(3)[labels]).mean(), rel=1e-5)


@EAGERLY
def test_class_weights_and_smooth_labels_are_those_of_the_formula(photos, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "data")
    for file in sorted((tmp_path / "data" / "circle").iterdir())[4:]:
        file.unlink()
    data = training_photos(open_images(tmp_path / "data"), batch_size=12, one_hot=True)
    pixels, targets = arrays(data)
    assert targets.sum(axis=0).tolist() == [4, 16, 16]
    weights = np.array([data.class_weight[i] for i in range(3)])[targets.argmax(axis=1)]
    model = head_only(
        keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    )
    found = fit(model, data, class_weight=data.class_weight).history["loss"][0]
    logits = run(model, pixels)
    each = cross_entropy(logits, targets * 0.8 + 0.2 / 3)
    assert found == pytest.approx(np.mean(weights * each), rel=1e-5)
    assert found != pytest.approx(each.mean(), rel=0.01)
    assert found != pytest.approx(np.mean(weights * cross_entropy(logits, targets)), rel=0.01)


@EAGERLY
def test_the_average_of_the_weights_is_kept_at_the_end(photos):
    class Record(keras.callbacks.Callback):
        values = []

        def on_train_batch_end(self, batch, logs=None):
            self.values.append(state(self.model)["classifier.weight"])

    model = head_only(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.6))
    record = Record()
    fit(model, training_photos(photos), epochs=2, callbacks=[record])
    average = record.values[0]
    for value in record.values[1:]:
        average = 0.6 * average + 0.4 * value
    assert len(record.values) == 2 * TRAIN_COUNT // 16
    np.testing.assert_allclose(state(model)["classifier.weight"], average, rtol=1e-5, atol=1e-7)
    assert not np.allclose(average, record.values[-1], rtol=1e-3)


def test_compiled_with_xla_it_computes_the_same():
    """The forward pass; its gradient takes the compiler four times as long."""
    import tensorflow as tf

    model, pixels = tiny(2, num_labels=3), images(2, 32, 32)
    compiled = tf.function(lambda values: model(values, training=False), jit_compile=True)
    np.testing.assert_allclose(compiled(pixels).numpy(), run(model, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_with_xla_it_learns_the_same(photos):
    pixels, labels = arrays(training_photos(photos))
    models, losses = [], []
    for jit in (False, True):
        model = tiny(2, num_labels=3)
        model.compile(keras.optimizers.SGD(0.001), LOSS, jit_compile=jit)
        model.optimizer.build(model.trainable_variables)
        losses.append(fit(model, pixels[:8], y=labels[:8]).history["loss"])
        models.append(state(model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, value in models[0].items():
        np.testing.assert_allclose(models[1][name], value, rtol=1e-4, atol=1e-4, err_msg=name)


# --- callbacks -----------------------------------------------------------------------------------------------------


@EAGERLY
def test_training_stops_when_it_no_longer_improves(photos):
    data = training_photos(photos)
    # What is measured on is what is learnt, so that it improves for as long as something is learnt.
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.001 if epoch < 2 else 0.0)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, min_delta=1e-4, restore_best_weights=True)
    history = fit(head_only(), data, epochs=9, validation_data=arrays(data), callbacks=[schedule, stop])
    losses = history.history["val_loss"]
    assert history.epoch == [0, 1, 2, 3]
    assert losses[1] < losses[0] - 1e-4 and losses[3] == pytest.approx(losses[1], abs=1e-5)
    assert stop.best_epoch == 1


@EAGERLY
def test_checkpoints_bring_the_training_back(photos, tmp_path):
    kept = [
        keras.callbacks.ModelCheckpoint(tmp_path / name, save_weights_only="weights" in name)
        for name in ("e{epoch}.keras", "e{epoch}.weights.h5")
    ]
    model, data = head_only(), training_photos(photos)
    fit(model, data, epochs=2, callbacks=kept)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"e{epoch}.{ending}" for epoch in (1, 2) for ending in ("keras", "weights.h5")
    }
    pixels, _ = arrays(data)
    whole = keras.saving.load_model(tmp_path / "e2.keras")
    np.testing.assert_array_equal(run(whole, pixels), run(model, pixels))
    assert int(whole.optimizer.iterations) == 2 * TRAIN_COUNT // 16
    weights = CLASSIFIERS[2](model.config)
    weights.load_weights(tmp_path / "e2.weights.h5")
    np.testing.assert_array_equal(run(weights, pixels), run(model, pixels))
    weights.load_weights(tmp_path / "e1.weights.h5")
    assert not np.array_equal(run(weights, pixels), run(model, pixels))
    # It goes on as the first one would.
    assert changed(state(model), state(whole)) == set()
    pixels, labels = arrays(data)
    assert whole.train_on_batch(pixels, labels) == pytest.approx(model.train_on_batch(pixels, labels), rel=1e-5)
    np.testing.assert_allclose(state(whole)["classifier.weight"], state(model)["classifier.weight"], rtol=1e-5)


@EAGERLY
def test_an_interrupted_training_goes_on_at_its_epoch(photos, tmp_path):
    class PowerCut(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    pixels, labels = (array[:16] for array in arrays(training_photos(photos)))
    steady = head_only()
    fit(steady, pixels, y=labels, epochs=4)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(head_only(), pixels, y=labels, epochs=4, callbacks=[backup, PowerCut()])
    resumed = head_only()
    history = fit(resumed, pixels, y=labels, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert history.epoch == [2, 3]
    for name, value in state(steady).items():
        np.testing.assert_allclose(state(resumed)[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


# --- Keras' own augmentation ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Photos that are red, green or blue all over, so that the mean colour is the label."""
    folder = tmp_path_factory.mktemp("colours")
    for index, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir()
        picture = np.zeros((40, 40, 3), np.uint8)
        picture[..., 2 - index] = 255
        for i in range(8):
            (folder / name / f"{i}.png").write_bytes(encode(picture, "PNG"))
    return folder


# Keras gives CutMix labels the area of the rectangle, not that of the pixels in it: up to one row and column of 32.
@EAGERLY
@pytest.mark.parametrize(
    ("mix", "tolerance"),
    [(keras.layers.MixUp(alpha=1.0, seed=1), 1e-4), (keras.layers.CutMix(factor=1.0, seed=1), 2 / 32)],
)
def test_photos_are_mixed_as_their_labels(colours, mix, tolerance):
    data = training_photos(open_images(colours), batch_size=8, one_hot=True)

    def mixed(pixels, labels):
        both = mix({"images": pixels, "labels": labels}, training=True)
        return both["images"], both["labels"]

    mixture = data.map(mixed)
    pixels, labels = arrays(mixture)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2))[:, ::-1], labels, rtol=0, atol=tolerance)
    assert ((labels > 0.1) & (labels < 0.9)).any()
    model = head_only(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    losses = fit(model, mixture, epochs=3).history["loss"]
    assert losses[-1] < losses[0]


def test_rand_augment_keeps_floats_in_their_range(photos):
    layer = keras.layers.RandAugment(value_range=(0, 1), seed=1)
    data = training_photos(photos)
    plain, _ = arrays(data)
    pixels, _ = arrays(data.map(lambda pixels, labels: (layer(pixels, training=True), labels)))
    assert pixels.shape == plain.shape and pixels.dtype == np.float32
    assert pixels.min() >= 0 and 0.5 < pixels.max() <= 1
    assert not np.allclose(np.sort(pixels.mean(axis=(1, 2, 3))), np.sort(plain.mean(axis=(1, 2, 3))), atol=0.01)


@EAGERLY
def test_tensorboard_gets_the_losses(photos, tmp_path):
    pytest.importorskip("tensorboard", reason="Keras writes its files with tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    history = fit(head_only(), training_photos(photos), epochs=2, callbacks=[keras.callbacks.TensorBoard(tmp_path)])
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    losses = [make_ndarray(event.tensor_proto) for event in events.Tensors("epoch_loss")]
    np.testing.assert_allclose(losses, history.history["loss"], rtol=1e-5)
