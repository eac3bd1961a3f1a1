"""The inference form of the Keras networks against the networks themselves and Apple's outputs, with twins that fail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from keras_networks import (
    CLASSIFIERS,
    QUIET,
    SMALLEST,
    VERSIONS,
    images,
    keras,
    numpy,
    reference_folder,
    run,
    tiny,
    twin,
)

tf = pytest.importorskip("tensorflow")
if keras.backend.backend() != "tensorflow":
    pytest.skip("the inference form needs Keras on TensorFlow", allow_module_level=True)

from mobilevit_hub.errors import InputError, MissingDependencyError  # noqa: E402
from mobilevit_hub.inference import folding  # noqa: E402
from mobilevit_hub.tf.inference import model as inference  # noqa: E402
from mobilevit_hub.tf.inference.model import fuse  # noqa: E402

pytestmark = [pytest.mark.tf, QUIET]
# Every choice of a config that changes what is folded.
CASES = [
    (1, {}),
    (1, {"use_fusion": False}),
    (1, {"qkv_bias": False, "expand_ratio": 1.0, "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}),
    (1, {"output_stride": 8, "hidden_act": "gelu"}),
    (2, {}),
    (2, {"odd_map": "stock"}),
    (2, {"attn_norm": "layer", "hidden_act": "relu"}),
    (2, {"output_stride": 16, "layer_norm_eps": 1e-2}),
]


def parts(got, expected):
    """Largest difference in parts of how much logits differ between images."""
    return np.abs(numpy(got) - expected).max() / expected.std(0).mean()


def difference(model, fused, pixels):
    return parts(fused(pixels), run(model, pixels))


def exact(version, fields):
    """The same network in float64, so that the rounding of the trainable model does not count; maps images to logits."""
    keras.config.set_dtype_policy("float64")
    try:
        model = tiny(version, **fields)
    finally:
        keras.config.set_dtype_policy("float32")
    return lambda pixels: run(model, pixels.astype(np.float64))


@pytest.mark.parametrize(("version", "fields"), CASES)
def test_logits_are_those_of_the_trainable_model(version, fields):
    fused, wanted = fuse(tiny(version, **fields)), exact(version, fields)
    for height, width in ((128, 128), (96, 160), (70, 101)):  # the last map is odd; all from the third stage on
        pixels = images(3, height, width)
        assert parts(fused(pixels), wanted(pixels)) < 1e-4, (height, width)


def without_shift(self, scale, shift):
    return folding.replace(self, weight=self.weight * scale)


def without_scale(self, scale, shift):
    return folding.replace(self, bias=self.bias + self.weight @ shift)


def swapped_corners(self, features, height, width, *, align_corners):
    from mobilevit_hub.tf.layers import resize

    return resize(features, height, width, align_corners=not align_corners)


def other_epsilon(norm, *, centred=False, standardisation=inference.standardisation):
    return standardisation(folding.replace(norm, epsilon=1e-2), centred=centred)


@VERSIONS
@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (folding.Linear, "after", without_shift),
        (folding.Linear, "after", without_scale),
        (inference.Operations, "resize", swapped_corners),
        (inference, "standardisation", other_epsilon),
        (
            inference.Operations,
            "fold_patches",
            lambda self, tokens, patch, height, width: tf.reshape(tokens, (-1, height, width, tokens.shape[-1])),
        ),
    ],
)
def test_a_wrong_rewrite_is_seen(monkeypatch, version, owner, name, broken):
    model = tiny(version)
    monkeypatch.setattr(owner, name, broken)
    assert difference(model, fuse(model), images(3, 70, 101)) > 1e-3


def test_tokens_with_a_mean_are_seen(monkeypatch):
    model = tiny(1)
    monkeypatch.setattr(folding.Linear, "without_mean", lambda self: self)
    assert difference(model, fuse(model), images(3, 64, 128)) > 1e-3


def test_a_wrong_border_is_seen(monkeypatch):
    """With odd_map="stock" zeros stand where no patch fits, which the norm's shift must not reach."""
    model, pixels, pad = tiny(2, odd_map="stock"), images(3, 96, 160), tf.pad
    expected = run(model, pixels)
    monkeypatch.setattr(tf, "pad", lambda tensor, sides: pad(tensor, sides, constant_values=float(sides[1][0] == 0)))
    assert parts(fuse(model)(pixels), expected) > 1e-3


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The inference forms of the smallest networks, made once."""
    forms = {}

    def form(variant):
        if variant not in forms:
            folder = reference_folder(tmp_path_factory.mktemp(variant), variant)
            version = next(version for version, name in SMALLEST.items() if name == variant)
            forms[variant] = fuse(CLASSIFIERS[version].from_pretrained(folder))
        return forms[variant]

    return form


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "case"), reference.case_ids("logits", tuple(SMALLEST.values())))
def test_logits_are_apples(published, variant, case):
    stored = reference.load_case(variant, case)
    stored.check({"logits": published(variant).predict(stored.input().transpose(0, 2, 3, 1))})


# --- a copy, not a view ----------------------------------------------------------------------------------------------


def test_the_model_is_unchanged_and_still_trains():
    model = tiny(1)
    before = {name: numpy(weight.variable + 0) for name, weight in model.named_weights().items()}
    pixels = images(4, 64, 128)
    fused = fuse(model, image_size=(64, 128))
    expected = fused(pixels).numpy()
    for name, weight in model.named_weights().items():
        np.testing.assert_array_equal(numpy(weight.variable + 0), before[name], err_msg=name)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    model.fit(pixels, np.arange(4), verbose=0)
    np.testing.assert_array_equal(fused(pixels).numpy(), expected)
    assert difference(model, fuse(model), pixels) < 1e-4 < difference(model, fused, pixels)


def test_the_method_of_the_models_does_the_same():
    model = tiny(2)
    np.testing.assert_array_equal(model.fuse((64, 128))(images(1, 64, 128)), fuse(model)(images(1, 64, 128)))


def test_no_variable_is_left_in_the_graph():
    fused = fuse(tiny(2))
    operations = {operation.type for operation in fused._graph(64, 128).graph.get_operations()}
    assert "MatMul" in operations and not operations & {"ReadVariableOp", "VarHandleOp", "StatefulPartitionedCall"}


def test_one_graph_serves_every_batch_size():
    fused = fuse(tiny(1), image_size=(64, 96))
    pixels = images(5, 64, 96)
    np.testing.assert_allclose(fused(pixels)[2:3], fused(pixels[2:3]), atol=1e-5)
    assert fused._graph.cache_info().misses == 1


def test_mixed_precision_models_compute_in_float32():
    expected = fuse(tiny(1))(images(2, 64, 128))
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        fused = fuse(tiny(1))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_array_equal(fused(images(2, 64, 128)), expected)


@pytest.mark.alone
def test_without_labels_the_features_come_out():
    model = tiny(1, num_labels=0)
    assert fuse(model)(images(1, 64, 128)).shape == (1, 32)
    assert difference(model, fuse(model), images(3, 64, 128)) < 1e-4


# --- predict and bad input -------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_predict_takes_any_number_of_images_in_turns():
    fused = fuse(tiny(2), image_size=(64, 128))
    pixels = images(5, 64, 128)
    got = fused.predict(pixels, batch_size=2)
    assert isinstance(got, np.ndarray) and got.shape == (5, 7)
    np.testing.assert_allclose(got, fused(pixels), atol=1e-5)


def test_threads_get_what_one_thread_gets():
    """Also while graphs of new sizes are being made."""
    batches = [images(2, 32 + 16 * (i % 3), 48, seed=i) for i in range(12)]
    fused, alone = (fuse(tiny(1)) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fused.predict, batches))
    for ours, pixels in zip(together, batches, strict=True):
        np.testing.assert_array_equal(ours, alone.predict(pixels))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 64, 64, 3), np.uint8), "uint8"),
        (np.zeros((1, 3, 64, 64), np.float32), "transpose"),
        (np.zeros((1, 16, 64, 3), np.float32), "16×64"),
        (np.zeros((0, 64, 64, 3), np.float32), "no image"),
        (np.zeros((64, 64, 3), np.float32), "(64, 64, 3)"),
        ([[1.0]], "list"),
    ],
)
def test_bad_pixels_are_refused(pixels, message):
    fused = fuse(tiny(1))
    for call in (fused, fused.predict):
        with pytest.raises(InputError) as error:
            call(pixels)
        assert message in str(error.value)


def test_other_models_are_refused():
    config = tiny(1).config
    with pytest.raises(InputError, match="TFMobileViTModel"):
        fuse(twin.TFMobileViTModel(config))
    with pytest.raises(InputError, match="image_size is 16"):
        fuse(tiny(1), image_size=16)


def test_a_model_of_one_size_takes_no_other():
    model = CLASSIFIERS[1](tiny(1).config, image_size=64)
    with pytest.raises(InputError, match="96×96"):
        fuse(model)(images(1, 96, 96))


def test_another_backend_is_named(monkeypatch):
    model = tiny(1)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(MissingDependencyError, match="KERAS_BACKEND=tensorflow"):
        fuse(model)
