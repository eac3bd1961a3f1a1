"""The Keras networks as Keras models: summary, training, freezing, number types, sizes, bad input, initialisation."""

import math

import numpy as np
import pytest
import reference
from keras_networks import (
    BACKBONES,
    CLASSIFIERS,
    MODELS,
    QUIET,
    SMALLEST,
    STAGES,
    VERSIONS,
    awake,
    channels_first,
    images,
    keras,
    layers,
    numpy,
    run,
    tiny,
    tiny_config,
    tiny_folder,
)

from mobilevit_hub.errors import InputError
from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.tf.layers import BatchNormalization

pytestmark = [pytest.mark.tf, QUIET]


@VERSIONS
def test_the_counts_are_those_of_pytorch(version):
    """Trainable and all values; Keras counts the counters of BatchNorm as well."""
    parameters = {"mobilevit_xxs": 1_272_024, "mobilevitv2_050": 1_370_593}[SMALLEST[version]]
    stored = sum(math.prod(shape) for _, shape in reference.manifest()[SMALLEST[version]]["tensors"])
    model = CLASSIFIERS[version](config_from_dict(reference.config(SMALLEST[version])))
    assert sum(math.prod(w.shape) for w in model.trainable_weights) == parameters
    assert model.count_params() == stored


@VERSIONS
def test_the_summary_names_every_stage(version):
    lines = []
    model = CLASSIFIERS[version](tiny_config(version))
    model.summary(print_fn=lambda text, **_: lines.append(text), line_length=120)
    text = "\n".join(lines)
    for name in ("pixel_values", *STAGES, "pooling", "classifier"):
        assert f" {name} " in text, name
    assert "MobileViT" in text and "Unknown" not in text
    short = []
    model.summary(print_fn=lambda text, **_: short.append(text), expand_nested=False)
    assert "stage3" not in "\n".join(short)


@VERSIONS
def test_variables_are_named_by_their_place(version):
    paths = [variable.path for variable in CLASSIFIERS[version](tiny_config(version)).variables]
    assert len(set(paths)) == len(paths)
    attention = ("attention/attention/query/kernel", "attention/qkv_proj/convolution/kernel")[version - 1]
    assert f"stage4/transformer/layer_0/{attention}" in paths


def compiled(model, **options):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


@pytest.mark.alone
@VERSIONS
def test_compile_fit_evaluate_and_predict(version):
    keras.utils.set_random_seed(0)
    model = compiled(CLASSIFIERS[version](tiny_config(version, hidden_dropout_prob=0.0)))
    assert not model.jit_compile  # on a CPU the compiler makes it several times slower
    pixels, labels = images(4, 48, 48), np.array([0, 2, 4, 6])
    history = model.fit(pixels, labels, batch_size=4, epochs=20, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert np.isfinite(model.evaluate(pixels, labels, verbose=0)).all()
    np.testing.assert_allclose(model.predict(pixels, verbose=0), run(model, pixels), rtol=1e-4, atol=1e-5)


@VERSIONS
def test_a_frozen_backbone_keeps_weights_and_statistics(version):
    model = tiny(version)
    model.backbone.trainable = False
    before = {name: numpy(weight.variable + 0) for name, weight in model.named_weights().items()}
    assert {weight.path for weight in model.trainable_weights} == {"classifier/kernel", "classifier/bias"}
    compiled(model, run_eagerly=True).fit(images(4, 48, 48), np.arange(4), epochs=2, verbose=0)
    changed = {
        n for n, weight in model.named_weights().items() if not np.array_equal(before[n], numpy(weight.variable + 0))
    }
    assert changed == {"classifier.weight", "classifier.bias"}


@VERSIONS
def test_an_unfrozen_network_with_frozen_norms_keeps_their_statistics_only(version):
    model = tiny(version)
    for layer in layers(model, BatchNormalization):
        layer.trainable = False
    before = {name: numpy(weight.variable + 0) for name, weight in model.named_weights().items()}
    # At 128 px every map holds several patches; attention over one patch has no gradient for query and key.
    compiled(model, run_eagerly=True).fit(images(4, 128, 128), np.arange(4), verbose=0)
    same = {n for n, weight in model.named_weights().items() if np.array_equal(before[n], numpy(weight.variable + 0))}
    norms = {n for n in before if ".normalization." in n}
    # A bias of the keys moves all scores of a query alike, which softmax does not see: its gradient is rounding.
    assert norms <= same <= norms | {n for n in before if n.endswith("key.bias")}


@pytest.mark.alone
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@VERSIONS
def test_mixed_precision(version, policy, tmp_path):
    folder = tiny_folder(tmp_path, version)
    plain, mixed = (CLASSIFIERS[version].from_pretrained(folder, dtype=dtype) for dtype in (None, policy))
    assert keras.config.dtype_policy().name == "float32"
    pixels = images(2, 75, 96)
    got, expected = run(mixed, pixels), run(plain, pixels)
    assert got.dtype == np.float32 and mixed.backbone.output["pooler_output"].dtype == policy.removeprefix("mixed_")
    assert 0 < reference.figure(got, expected) < {"mixed_float16": 0.02, "mixed_bfloat16": 0.15}[policy]
    assert {weight.dtype for weight in mixed.trainable_weights} == {"float32"}
    loss = compiled(mixed, run_eagerly=True).fit(pixels, np.arange(2), verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    again = CLASSIFIERS[version].from_config(mixed.get_config())
    assert again.dtype_policy.name == policy and again.backbone.get_layer("stage3").dtype_policy.name == policy


@VERSIONS
def test_the_config_rebuilds_the_model(version):
    model = tiny(version, output_stride=16, id2label={0: "cat", 1: "dog"}, num_labels=None)
    model.backbone.get_layer("stage2").trainable = False
    again = CLASSIFIERS[version].from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert again.config.to_dict() == model.config.to_dict() and again.name == model.name
    assert len(again.trainable_weights) == len(model.trainable_weights) < len(tiny(version).trainable_weights)
    again.set_weights(model.get_weights())
    pixels = images(1, 64, 64)
    assert np.array_equal(run(again, pixels), run(model, pixels))


@VERSIONS
def test_a_fixed_image_size(version):
    model = awake(CLASSIFIERS[version](tiny_config(version), image_size=(64, 96)))
    assert model.input_shape == (None, 64, 96, 3)
    assert model.backbone.get_layer("stage5").output.shape[1:3] == (2, 4 if version == 2 else 3)
    pixels = images(2, 64, 96)
    np.testing.assert_allclose(run(model, pixels), run(tiny(version), pixels), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"96×64 pixels do not fit .* image_size=\(64, 96\)"):
        model(pixels.transpose(0, 2, 1, 3))
    again = CLASSIFIERS[version].from_config(model.get_config())
    assert again.input_shape == model.input_shape


@pytest.mark.parametrize("size", [16, 31, 0, "64", 64.0, (64,), (64, 64, 3), (64, 16), True])
def test_an_impossible_image_size_is_refused(size):
    with pytest.raises(InputError, match="image_size is") as caught:
        CLASSIFIERS[1](tiny_config(1), image_size=size)
    assert caught.value.field == "image_size"


NOT_IMAGES = [
    (images(1, 64, 64)[0], r"shape \(64, 64, 3\); expected \(B, H, W, 3\)"),
    (channels_first(images(1, 64, 64)), "looks channels-first"),
    (images(1, 64, 64, channels=4), r"shape \(1, 64, 64, 4\)"),
    (np.zeros((1, 64, 64, 3), np.uint8), "dtype uint8; expected floats in"),
    (images(1, 31, 64), "31×64 pixels are too small; MobileViT needs at least 32"),
    (images(0, 64, 64), "no image"),
    ([[0.5]], "is list; expected a float array"),
    (None, "is NoneType"),
]


@pytest.mark.parametrize("classes", [CLASSIFIERS, MODELS, BACKBONES])
@VERSIONS
def test_what_is_not_an_image_is_refused(version, classes):
    model = classes[version](tiny_config(version))
    for value, message in NOT_IMAGES:
        with pytest.raises(InputError, match=message) as caught:
            model(value)
        assert caught.value.field == "pixel_values" and "\n" not in str(caught.value)


def test_predict_and_fit_refuse_with_the_same_words():
    model = compiled(CLASSIFIERS[2](tiny_config(2)))
    with pytest.raises(InputError, match="looks channels-first"):
        model.predict(channels_first(images(1, 64, 64)), verbose=0)
    with pytest.raises(InputError, match="dtype uint8"):
        model.fit(np.zeros((2, 64, 64, 3), np.uint8), np.zeros(2), verbose=0)


def test_images_by_name():
    """As processors and data sets name them."""
    model, pixels = tiny(1), images(1, 64, 64)
    assert np.array_equal(run(model, {"pixel_values": pixels}), run(model, pixels))


@VERSIONS
def test_a_backbone_returns_the_last_map_by_default_and_refuses_unknown_names(version):
    config = tiny_config(version)
    assert list(run(BACKBONES[version](config), images(1, 64, 64))) == ["stage5"]
    maps = BACKBONES[version](config, out_features=["stage4", "stem"])
    assert maps.out_features == ["stem", "stage4"] and maps.strides == [2, 16]
    assert list(BACKBONES[version].from_config(maps.get_config()).output) == ["stem", "stage4"]
    with pytest.raises(InputError, match="out_features has 'layer9'; expected names from stem, stage1"):
        BACKBONES[version](config, out_features=["stage4", "layer9"])


@VERSIONS
def test_without_labels_the_classifier_returns_the_pooled_features(version):
    model = tiny(version, num_labels=0)
    pixels = images(2, 64, 64)
    assert np.array_equal(run(model, pixels), run(model.backbone, pixels)["pooler_output"])
    assert not [name for name in model.named_weights() if name.startswith("classifier")]


@VERSIONS
def test_a_model_is_a_layer_of_another(version):
    inner = tiny(version)
    pixels = keras.Input((64, 64, 3))
    outer = keras.Model(pixels, keras.layers.Softmax()(inner(pixels)))
    np.testing.assert_allclose(run(outer, images(2, 64, 64)).sum(-1), 1, rtol=1e-5)


@VERSIONS
def test_dropout_acts_in_training_only(version):
    fields = {"hidden_dropout_prob": 0.5, "ffn_dropout": 0.5, "classifier_dropout_prob": 0.5}
    fields |= {"attention_probs_dropout_prob": 0.5} if version == 1 else {"attn_dropout": 0.5}
    pixels = images(2, 64, 64)
    plain = run(tiny(version), pixels)
    assert np.array_equal(run(tiny(version, **fields), pixels), plain)
    for name in fields:
        if (version, name) == (2, "classifier_dropout_prob"):  # whose network has none there, as Apple's
            continue
        model = tiny(version, **{"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0, name: 0.5})
        for layer in layers(model, BatchNormalization):
            layer.trainable = False
        one, two = (numpy(model(pixels, training=True)) for _ in range(2))
        assert not np.array_equal(one, two), name


# --------------------------------------------------------------------------------------------------
# Initialisation
# --------------------------------------------------------------------------------------------------


def fresh(version, **fields):
    """The weights of a new model by their names in the checkpoint: value in Keras' layout, kind, shape there."""
    keras.utils.set_random_seed(0)
    model = CLASSIFIERS[version](tiny_config(version, **fields))
    return {n: (numpy(w.variable + 0), w.kind, w.shape) for n, w in model.named_weights().items()}


def spread(values, std):
    """The sample's standard deviation is within 5 standard errors of a normal one's, its mean near 0."""
    count = values.size
    return abs(values.std() / std - 1) < 5 / math.sqrt(2 * count) and abs(values.mean()) < 5 * std / math.sqrt(count)


@VERSIONS
def test_fresh_norms_scale_by_one(version):
    weights = fresh(version)
    plain = {name: value for name, (value, kind, _) in weights.items() if kind == "plain"}
    norms = {name for name in plain if "norm" in name}
    assert {name for name in norms if plain[name].any()} == {n for n in norms if n.endswith((".weight", "running_var"))}
    assert all((plain[n] == 1).all() for n in norms if n.endswith((".weight", "running_var")))


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_version_1_starts_like_apples_first_release(std):
    for name, (value, kind, shape) in fresh(1, initializer_range=std).items():
        if kind in ("conv", "depthwise"):
            assert spread(value, math.sqrt(2 / (shape[0] * shape[2] * shape[3]))), name
        elif kind == "linear":
            assert spread(value, std), name
        elif "norm" not in name:
            assert not value.any(), name


def test_version_2_starts_like_apples_later_releases():
    weights = fresh(2)
    for name, (value, kind, shape) in weights.items():
        if kind in ("conv", "depthwise"):
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            bias = weights.get(name.removesuffix("weight") + "bias")
            for values in [value] if bias is None else [value, bias[0]]:
                assert 0.85 * bound < np.abs(values).max() <= bound and values.std() > 0.3 * bound, name
    head, _, shape = weights["classifier.weight"]
    bound = math.sqrt(6 / sum(shape))
    assert 0.95 * bound < np.abs(head).max() <= bound
    assert not weights["classifier.bias"][0].any()


def test_the_seed_decides_the_weights():
    one, same = fresh(1), fresh(1)
    other = CLASSIFIERS[1](tiny_config(1)).named_weights()
    name = "mobilevit.encoder.layer.3.conv_kxk.convolution.weight"
    assert np.array_equal(one[name][0], same[name][0])
    assert not np.array_equal(one[name][0], numpy(other[name].variable + 0))
