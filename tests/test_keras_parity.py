"""The Keras networks against Apple's outputs and the PyTorch twin, each comparison with twins that must fail."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from keras_networks import (
    BACKBONES,
    CLASSIFIERS,
    QUIET,
    SMALLEST,
    STAGES,
    VERSIONS,
    channels_first,
    channels_last,
    fresh_process,
    images,
    keras,
    layers,
    numpy,
    pytorch_class,
    pytorch_run,
    reference_folder,
    run,
    tiny,
    tiny_folder,
    version_of,
)

from mobilevit_hub.tf import mobilevit, mobilevitv2
from mobilevit_hub.tf.layers import BatchNormalization, ConvNormAct
from mobilevit_hub.tf.mobilevit import MobileViTBlock, SelfAttention
from mobilevit_hub.tf.mobilevitv2 import GroupNorm1, MobileViTV2Block, SeparableSelfAttention

pytestmark = [pytest.mark.tf, QUIET]


def load(variant, folder, cls=CLASSIFIERS, **options):
    """A network of Keras from a folder with the weights of the rule."""
    if not (folder / "config.json").exists():
        reference_folder(folder, variant)
    return cls[version_of(variant)].from_pretrained(folder, **options)


QUICK = ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100")
ALL = [pytest.param(v, marks=() if v in QUICK else pytest.mark.slow) for v in reference.VARIANTS]


@pytest.fixture(scope="module", params=ALL)
def network(request, tmp_path_factory):
    """A full network, its folder, and what it makes of the stored images, each computed once."""
    variant, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = load(variant, folder)

    @cache
    def logits(case_id):
        return run(model, channels_last(reference.load_case(variant, case_id).input()))

    @cache
    def features():
        """By Apple's names, channels-first: all stages and the map before pooling."""
        pixels = channels_last(reference.load_case(variant, "features_256x256").input())
        maps = run(load(variant, folder, BACKBONES, out_features=STAGES), pixels)
        assert list(maps) == STAGES
        maps["features"] = run(model.backbone, pixels)["last_hidden_state"]
        names = ["conv_1", *(f"layer_{i}" for i in range(1, 6)), "features"]
        return dict(zip(names, map(channels_first, maps.values()), strict=True))

    return SimpleNamespace(variant=variant, folder=folder, model=model, logits=logits, features=features)


# --------------------------------------------------------------------------------------------------
# Apple's outputs
# --------------------------------------------------------------------------------------------------


def test_every_logit_equals_apples(network):
    cases = reference.case_ids("logits", (network.variant,))
    assert len(cases) == 4
    for variant, case_id in cases:
        reference.load_case(variant, case_id).check({"logits": network.logits(case_id)})


def test_every_feature_equals_apples(network):
    case = reference.load_case(network.variant, "features_256x256")
    assert len(case.specs) == 14
    case.check(network.features())


def _swap_concat_order(model):
    for block in layers(model, MobileViTBlock):
        first, second = np.split(numpy(block.fusion.convolution.kernel + 0), 2, axis=2)
        block.fusion.convolution.kernel.assign(np.concatenate([second, first], axis=2))


def _transpose_spatial_kernels(model):
    for layer in layers(model, ConvNormAct):
        layer.convolution.kernel.assign(numpy(layer.convolution.kernel + 0).transpose(1, 0, 2, 3))


def _transpose_queries(model):
    for layer in layers(model, SelfAttention):
        layer.query.kernel.assign(numpy(layer.query.kernel + 0).T)


def _flip_channels(model):
    stem = model.backbone.get_layer("stem").convolution
    stem.kernel.assign(numpy(stem.kernel + 0)[:, :, ::-1])


def _pad_like_tensorflow(model):
    for layer in layers(model, ConvNormAct):
        if layer.stride == 2:
            layer.padding, layer.convolution.padding = 0, "same"


def _set_epsilon(kind):
    def change(model):
        for layer in layers(model, kind):
            layer.epsilon = 1e-3

    return change


def _projection_activation(activation):
    def change(model):
        for block in layers(model, MobileViTBlock | MobileViTV2Block):
            block.conv_projection.activation = activation

    return change


def _swap_dense(first, second):
    def change(model):
        for layer in layers(model, SelfAttention):
            one, two = getattr(layer, first), getattr(layer, second)
            for a, b in zip(one.weights, two.weights, strict=True):
                value = numpy(a + 0)
                a.assign(b)
                b.assign(value)

    return change


def _swap_key_and_value(model):
    for layer in layers(model, SeparableSelfAttention):
        for variable in layer.qkv_proj.convolution.weights:
            query, key, value = np.split(numpy(variable + 0), [1, 1 + layer.width], axis=-1)
            variable.assign(np.concatenate([query, value, key], axis=-1))


def _hard_swish(model):
    for layer in layers(model, ConvNormAct):
        if layer.activation is not None:
            layer.activation = keras.ops.hard_silu


TWINS = {
    1: {
        "concat order": _swap_concat_order,
        "transposed kernels": _transpose_spatial_kernels,
        "transposed queries": _transpose_queries,
        "channels": _flip_channels,
        "padding": _pad_like_tensorflow,
        "LayerNorm epsilon": _set_epsilon(keras.layers.LayerNormalization),
        "BatchNorm epsilon": _set_epsilon(BatchNormalization),
        "projection activation": _projection_activation(None),
        "query and key": _swap_dense("query", "key"),
        "key and value": _swap_dense("key", "value"),
        "hard swish": _hard_swish,
    },
    2: {
        "transposed kernels": _transpose_spatial_kernels,
        "channels": _flip_channels,
        "padding": _pad_like_tensorflow,
        "GroupNorm epsilon": _set_epsilon(GroupNorm1),
        "BatchNorm epsilon": _set_epsilon(BatchNormalization),
        "projection activation": _projection_activation(keras.ops.silu),
        "key and value": _swap_key_and_value,
        "hard swish": _hard_swish,
    },
}


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_network_is_far_from_apples(version, tmp_path):
    """The comparison sees each of these changes."""
    variant = SMALLEST[version]
    case = reference.load_case(variant, "logits_256x256")
    pixels = channels_last(case.input())
    for name, change in TWINS[version].items():
        model = load(variant, tmp_path)
        change(model)
        value, tolerance = case.compare({"logits": run(model, pixels)})["logits"]
        assert value > 100 * tolerance, name


@VERSIONS
def test_the_other_corner_rule_is_far_from_apples_on_odd_maps(version, tmp_path, monkeypatch):
    """Version 1 resizes with half-pixel centres and back, version 2 with aligned corners."""
    module, variant = (mobilevit, mobilevitv2)[version - 1], SMALLEST[version]
    case, model, resize = reference.load_case(variant, "logits_224x300"), load(variant, tmp_path), module.resize
    monkeypatch.setattr(module, "resize", lambda *args, align_corners: resize(*args, align_corners=not align_corners))
    value, tolerance = case.compare({"logits": run(model, channels_last(case.input()))})["logits"]
    assert value > 100 * tolerance


# --------------------------------------------------------------------------------------------------
# The PyTorch twin
# --------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_pytorch_and_keras_agree_on_the_same_folder(network):
    twin = pytorch_class(version_of(network.variant)).from_pretrained(network.folder)
    for case_id in ("logits_256x256", "logits_192x192", "logits_224x300"):
        pixels = channels_last(reference.load_case(network.variant, case_id).input())
        assert reference.figure(network.logits(case_id), pytorch_run(twin, pixels).logits) < 1e-4, case_id
    pixels = images(1, 384, 384)
    assert reference.figure(run(network.model, pixels), pytorch_run(twin, pixels).logits) < 1e-4

    pixels = channels_last(reference.load_case(network.variant, "features_256x256").input())
    output = pytorch_run(twin.base_model, pixels, output_hidden_states=True)
    expected = {f"layer_{i}": stage for i, stage in enumerate(output.hidden_states, 1)}
    expected |= {"conv_1": pytorch_run(twin.base_model.conv_stem, pixels), "features": output.last_hidden_state}
    features = network.features()
    assert features.keys() == expected.keys()
    for name, value in features.items():
        assert reference.figure(value, expected[name]) < 1e-4, name


FIELDS = [
    {},
    {"output_stride": 8},
    {"output_stride": 16},
    {"patch_size": 4},
    {"patch_size": [8, 4, 2]},
    {"patch_size": 1},
    {"hidden_act": "relu"},
    {"hidden_act": "gelu"},
    {"conv_kernel_size": 5},
    {"num_channels": 1},
]
FIELDS_OF = {
    1: [{"use_fusion": False}, {"attention_head_size": 8}, {"qkv_bias": False}, {"mlp_ratio": 3.0},
        {"n_attn_blocks": [2, 1, 3]}, {"expand_ratio": 1, "neck_hidden_sizes": [8, 8, 16, 16, 16, 24, 32]}],
    2: [{"attn_norm": "layer"}, {"odd_map": "stock"}, {"ffn_multiplier": 3}, {"layer_norm_eps": 1e-2},
        {"expand_ratio": 1}],
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize(
    ("version", "fields"), [(v, f) for v in (1, 2) for f in FIELDS + FIELDS_OF[v]], ids=lambda value: str(value)
)
def test_every_knob_means_the_same_in_both_twins(version, fields, tmp_path):
    """All feature maps and the logits, on even, odd and small images."""
    model = tiny(version, **fields)
    model.save_pretrained(tmp_path)
    maps = BACKBONES[version].from_pretrained(tmp_path, out_features=STAGES)
    twin = pytorch_class(version).from_pretrained(tmp_path)
    twin_maps = pytorch_class(version, "Backbone").from_pretrained(tmp_path, out_features=STAGES)
    assert (maps.channels, maps.strides, maps.out_indices) == (
        twin_maps.channels, twin_maps.strides, twin_maps.out_indices
    )  # fmt: skip
    for height, width in ((64, 96), (101, 77)):
        pixels = images(2, height, width, channels=model.config.num_channels)
        assert reference.figure(run(model, pixels), pytorch_run(twin, pixels).logits) < 1e-4
        expected = pytorch_run(twin_maps, pixels).feature_maps
        for name, value, other in zip(STAGES, run(maps, pixels).values(), expected, strict=True):
            assert reference.figure(channels_first(value), other) < 1e-4, name


TORCH_BACKEND = """
import sys
import numpy as np
import keras_networks as kn
import reference

assert kn.keras.backend.backend() == "torch"
figures = []
for version in (1, 2):
    folder = sys.argv[version]
    model = kn.CLASSIFIERS[version].from_pretrained(folder + "/tiny")
    for size in ((64, 96), (101, 77)):
        figures.append(reference.figure(kn.run(model, kn.images(2, *size)), np.load(f"{folder}/{size[0]}.npy")))
    case = reference.load_case(kn.SMALLEST[version], "logits_224x300")
    model = kn.CLASSIFIERS[version].from_pretrained(folder + "/full")
    ((value, tolerance),) = case.compare({"logits": kn.run(model, case.input().transpose(0, 2, 3, 1))}).values()
    figures.append(value)
print(max(figures))
"""


@pytest.mark.parity
def test_logits_are_the_same_on_the_torch_backend(tmp_path):
    folders = []
    for version in (1, 2):
        folders.append(tmp_path / str(version))
        reference_folder(folders[-1] / "full", SMALLEST[version])
        model = CLASSIFIERS[version].from_pretrained(tiny_folder(folders[-1] / "tiny", version))
        for height, width in ((64, 96), (101, 77)):
            np.save(folders[-1] / f"{height}.npy", run(model, images(2, height, width)))
    printed = fresh_process(TORCH_BACKEND, *folders, KERAS_BACKEND="torch").stdout
    assert 0 < float(printed.split()[-1]) < 1e-4
