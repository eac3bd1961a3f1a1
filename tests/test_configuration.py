"""The configs: every field checked, no file trusted, the same file as stock transformers'."""

import json
import math

import pytest
import transformers

from mobilevit_hub.errors import ConfigError, NotFoundError
from mobilevit_hub.hub.presets import get_preset, list_presets
from mobilevit_hub.network.architecture import MAX_PARAMETERS, DownsamplingRule, downsampling_rules, make_divisible
from mobilevit_hub.network.configuration import (
    CONFIG_CLASSES,
    MobileViTConfig,
    MobileViTV2Config,
    config_from_dict,
    full_config,
)
from mobilevit_hub.network.fields import network_of

V1, V2 = MobileViTConfig, MobileViTV2Config
BOTH = pytest.mark.parametrize("cls", [V1, V2])
STOCK = {V1: transformers.MobileViTConfig, V2: transformers.MobileViTV2Config}
NAN, INFINITY = float("nan"), float("inf")


def file_content(cls, **fields):
    return {"model_type": cls.model_type, **fields}


# --------------------------------------------------------------------------------------------------
# Field ranges
# --------------------------------------------------------------------------------------------------

NOT_INTEGERS = ("4", 4.5, 4.0, True, None, [4])
NOT_NUMBERS = ("0.1", True, None, NAN, INFINITY, -INFINITY, [0.1])

# field: (values at the edges that are accepted, values just outside or of another type)
SHARED_RANGES = {
    "num_channels": ((1, 16), (0, 17, *NOT_INTEGERS)),
    "image_size": ((32, 1024, [32, 1024]), (31, 1025, [31, 32], [32, 1025], [32], [32, 32, 32], "4", 64.0, True, None)),
    "patch_size": ((1, 8, [8, 4, 2], [1, 1, 8]), (0, 9, -1, [2, 2], [2, 2, 2, 2], [0, 2, 2], [2, 9, 2], 2.0, True, None)),
    "expand_ratio": ((1e-6, 1, 16, 2.5), (0, -1, 16.01, *NOT_NUMBERS)),
    "hidden_act": (("silu", "swish", "relu", "gelu"), ("nope", "SiLU", "", 1, None, ["silu"])),
    "conv_kernel_size": ((1, 3, 5, 7), (0, 2, 4, 6, 8, 9, -3, "3", True, None)),
    "output_stride": ((8, 16, 32), (4, 7, 12, 31, 33, 64, 0, -8, "32", True, None)),
    "n_attn_blocks": (([1, 1, 1], [16, 16, 16], (2, 4, 3)), ([2, 4], [2, 4, 3, 1], [0, 4, 3], [17, 4, 3], [-1, 4, 3], [2.0, 4, 3], 3, None)),
    "classifier_dropout_prob": ((0, 0.0, 0.99), (-0.01, 1, 1.0, *NOT_NUMBERS)),
    "hidden_dropout_prob": ((0, 0.0, 0.99), (-0.01, 1, 1.0, *NOT_NUMBERS)),
    "ffn_dropout": ((0, 0.0, 0.99), (-0.01, 1, 1.0, *NOT_NUMBERS)),
    "aspp_dropout_prob": ((0, 0.0, 0.99), (-0.01, 1, 1.0, *NOT_NUMBERS)),
    "layer_norm_eps": ((1e-12, 0.1), (0, -1, 0.1001, 0.5, *NOT_NUMBERS)),
    "initializer_range": ((0, 1), (-0.01, 1.01, *NOT_NUMBERS)),
    "aspp_out_channels": ((1, 4096), (0, 4097, *NOT_INTEGERS)),
    "atrous_rates": (([1], [64] * 8, [6, 12, 18]), ([], [1] * 9, [0, 6], [65], [6.0], 6, None)),
    "semantic_loss_ignore_index": ((-100, 65535), (-101, 65536, *NOT_INTEGERS)),
    "num_labels": ((0, 1, 100_000), (-1, 100_001, *NOT_INTEGERS)),
    "dtype": ((None, "float32", "float16", "bfloat16"), ("float64", "int8", "auto", "nope", 32)),
    "output_hidden_states": ((True, False), ("yes", 1)),
    "problem_type": ((None, "regression", "multi_label_classification"), ("nope", 1)),
}  # fmt: skip
RANGES = {
    V1: SHARED_RANGES | {
        "hidden_sizes": (([8, 8, 8], [1024, 1024, 1024]), ([4, 8, 8], [1028, 8, 8], [8, 8], [8] * 4, [8, 8, "8"], [8.0, 8, 8], 8, None)),
        "neck_hidden_sizes": (([1] * 7, [1] * 6 + [4096]), ([1] * 6, [1] * 8, [0] + [1] * 6, [1] * 6 + [4097], [True] + [1] * 6, None)),
        "num_attention_heads": ((1, 48), (0, 65, -4, *NOT_INTEGERS)),
        "attention_head_size": ((None, 1, 48), (0, 1025, -4, "4", 4.0, True)),
        "mlp_ratio": ((1e-6, 2, 16), (0, -1, 16.01, *NOT_NUMBERS)),
        "attention_probs_dropout_prob": ((0, 0.99), (-0.01, 1, *NOT_NUMBERS)),
        "qkv_bias": ((True, False), (0, 1, "true", None)),
        "use_fusion": ((True, False), (0, 1, "true", None)),
    },
    V2: SHARED_RANGES | {
        "base_attn_unit_dims": (([8, 8, 8], [2048, 8, 8]), ([0, 8, 8], [7, 8, 8], [12, 8, 8], [2056, 8, 8], [8, 8], [8] * 4, [8.0, 8, 8], None)),
        "width_multiplier": ((0.25, 1, 4), (0, -1, 0.01, 0.249, 4.01, *NOT_NUMBERS)),
        "ffn_multiplier": ((1, 2.0, 16), (0, -1, 17, 2.5, "2", True, None)),
        "attn_dropout": ((0, 0.99), (-0.01, 1, *NOT_NUMBERS)),
        "attn_norm": (("group", "layer"), ("batch", None, 1)),
        "odd_map": (("apple", "stock"), ("crop", None, 1)),
    },
}  # fmt: skip
FIELDS = pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, table in RANGES.items() for name in table])


@BOTH
def test_the_table_of_ranges_covers_every_field(cls):
    own = {"id2label", "label2id"}  # checked by tests of their own
    general = {"architectures", "chunk_size_feed_forward", "is_encoder_decoder", "return_dict", "transformers_version"}
    assert cls.known_fields() - own - general == set(RANGES[cls])


@FIELDS
def test_values_at_the_edge_are_accepted_and_kept(cls, name):
    for value in RANGES[cls][name][0]:
        config = cls(**{name: value})
        kept = getattr(config, name)
        if name == "dtype" and value is not None:
            assert str(kept) == f"torch.{value}"
        else:
            assert kept == (list(value) if isinstance(value, tuple) else value)
        assert type(kept) is not bool or type(value) is bool


@FIELDS
def test_values_outside_are_refused_wherever_they_come_from(cls, name):
    """CFG-11 to CFG-15: constructor, file and assignment refuse alike and name the field."""
    for value in RANGES[cls][name][1]:
        with pytest.raises(ConfigError, match=name):
            cls(**{name: value})
        with pytest.raises(ConfigError, match=f"^some/config.json: .*{name}") as caught:
            config_from_dict(file_content(cls, **{name: value}), "some/config.json")
        assert caught.value.path == "some/config.json" and caught.value.field.startswith(name)
        assert "\n" not in str(caught.value)
        config = cls()
        before = config.to_dict()
        if name != "base_attn_unit_dims" or value != [12, 8, 8]:  # found when the config is used or saved
            with pytest.raises(ConfigError, match=name):
                setattr(config, name, value)
            assert config.to_dict() == before


def test_an_error_says_what_was_found_and_what_is_accepted():
    with pytest.raises(ConfigError) as caught:
        V1(hidden_sizes=[144, 192])
    assert str(caught.value) == "hidden_sizes is [144, 192]; expected a list of 3 values."
    assert (caught.value.field, caught.value.found) == ("hidden_sizes", [144, 192])
    with pytest.raises(ConfigError, match=r"n_attn_blocks\[1\] is 0; expected an integer from 1 to 16"):
        V2(n_attn_blocks=[2, 0, 3])
    with pytest.raises(ConfigError, match="output_stride is 7; expected one of 8, 16, 32"):
        V1(output_stride=7)
    with pytest.raises(ConfigError) as caught:
        V1(hidden_act="x" * 10_000)
    assert len(str(caught.value)) < 300


def test_an_integer_is_a_number():
    config = config_from_dict(file_content(V1, mlp_ratio=2, expand_ratio=4, layer_norm_eps=0.1))
    assert (config.mlp_ratio, config.expand_ratio) == (2.0, 4.0)


@pytest.mark.parametrize(
    "fields", [{"num_attention_heads": 5}, {"hidden_sizes": [144, 190, 240]}, {"attention_head_size": 7}]
)
def test_heads_must_divide_the_widths(fields):
    with pytest.raises(ConfigError, match="divisor of each of hidden_sizes"):
        V1(**fields)


def test_a_head_size_replaces_the_number_of_heads():
    assert [V1(attention_head_size=48).heads(width) for width in (144, 192, 240)] == [3, 4, 5]
    assert [V1().heads(width) for width in (144, 192, 240)] == [4, 4, 4]


# --------------------------------------------------------------------------------------------------
# Parameter count
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (V1, {"neck_hidden_sizes": [4096] * 7, "conv_kernel_size": 7}),
        (V1, {"hidden_sizes": [1024] * 3, "mlp_ratio": 16, "n_attn_blocks": [16] * 3}),
        (V2, {"width_multiplier": 4.0, "base_attn_unit_dims": [2048] * 3, "n_attn_blocks": [16] * 3}),
        (V2, {"width_multiplier": 4.0, "expand_ratio": 16, "base_attn_unit_dims": [2048] * 3, "num_labels": 100_000}),
    ],
)
def test_a_parameter_bomb_is_refused_by_arithmetic(cls, fields):
    """CFG-19."""
    for build in (lambda: cls(**fields), lambda: config_from_dict(file_content(cls, **fields))):
        with pytest.raises(ConfigError, match="million parameters; the limit is 500 million"):
            build()


PARAMETERS = [
    (V1, {}, 5_578_632),
    (V2, {"width_multiplier": 0.5}, 1_370_593),
    (V2, {"width_multiplier": 2.0}, 18_449_329),
]


@pytest.mark.parametrize(("cls", "fields", "parameters"), PARAMETERS)
def test_the_estimate_is_close_to_the_real_count(cls, fields, parameters):
    estimate = sum(cls(num_labels=1000, **fields)._parameter_terms())
    assert 0.5 * parameters < estimate <= parameters
    assert parameters < MAX_PARAMETERS


# --------------------------------------------------------------------------------------------------
# The same file as stock transformers
# --------------------------------------------------------------------------------------------------

EXAMPLES = [
    (V1, {}),
    (V1, {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 24, 32], "num_attention_heads": 2, "num_labels": 7}),
    (V1, {"patch_size": [8, 4, 2], "use_fusion": False, "attention_head_size": 24, "output_stride": 16, "dtype": "float16"}),
    (V2, {}),
    (V2, {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "id2label": {0: "ä", 1: "b"}}),
    (V2, {"attn_norm": "layer", "odd_map": "stock", "image_size": [64, 96], "ffn_multiplier": 3, "hidden_dropout_prob": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "fields"), EXAMPLES)
def test_saving_and_loading_changes_nothing(cls, fields, tmp_path):
    config = cls(**fields)
    config.save_pretrained(tmp_path)
    for again in (
        cls.from_file(tmp_path / "config.json"),
        cls.from_pretrained(tmp_path),
        cls.from_dict(config.to_dict()),
    ):
        assert type(again) is cls and again.to_dict() == config.to_dict()
        for name, value in fields.items():
            assert getattr(again, name) == (getattr(config, name) if name == "dtype" else value)


@pytest.mark.parametrize(("cls", "fields"), EXAMPLES)
def test_stock_transformers_reads_our_file_and_we_read_theirs(cls, fields, tmp_path):
    fields = {name: value for name, value in fields.items() if name in STOCK[cls]().to_dict() or "label" in name}
    ours, stock = cls(**fields), STOCK[cls](**fields)
    from_ours = STOCK[cls].from_dict(ours.to_dict())
    from_stock = cls.from_dict(stock.to_dict())
    assert from_stock.to_dict() == ours.to_dict()
    for name, value in stock.to_dict().items():
        if name != "label2id":  # stock leaves it out when only id2label is given
            assert _plain(from_ours.to_dict()[name]) == _plain(value), name
    stock.save_pretrained(tmp_path / "stock")
    assert cls.from_file(tmp_path / "stock/config.json").to_dict() == ours.to_dict()
    ours.save_pretrained(tmp_path / "ours")
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "ours")) is STOCK[cls]


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@BOTH
def test_the_defaults_are_those_of_stock_transformers(cls):
    ours, stock = cls().to_dict(), STOCK[cls]().to_dict()
    assert {name: _plain(ours[name]) for name in stock} == {name: _plain(value) for name, value in stock.items()}


# --------------------------------------------------------------------------------------------------
# Widths, strides, dilations
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [8, 16])
def test_make_divisible_is_the_nearest_multiple_that_keeps_nine_tenths(divisor):
    for value in (*range(1, 400), 0.5, 7.9, 11.99, 12.0, 19.9, 100.1, 4095.9):
        result = make_divisible(value, divisor)
        nearest = math.floor(value / divisor + 0.5) * divisor
        wanted = max(divisor, nearest if nearest >= 0.9 * value else nearest + divisor)
        assert (value, result) == (value, wanted) and result % divisor == 0 and type(result) is int


def test_make_divisible_keeps_the_minimum():
    assert [make_divisible(v, 8, 16) for v in (1, 8, 16, 23, 28)] == [16, 16, 16, 24, 32]


# Stem, stages 1 to 5; width of attention in stages 3 to 5.
WIDTHS = {
    0.5: ((16, 32, 64, 128, 192, 256), (64, 96, 128)),
    0.75: ((24, 48, 96, 192, 288, 384), (96, 144, 192)),
    1.0: ((32, 64, 128, 256, 384, 512), (128, 192, 256)),
    1.25: ((40, 80, 160, 320, 480, 640), (160, 240, 320)),
    1.5: ((48, 96, 192, 384, 576, 768), (192, 288, 384)),
    1.75: ((56, 112, 224, 448, 672, 896), (224, 336, 448)),
    2.0: ((64, 128, 256, 512, 768, 1024), (256, 384, 512)),
}


@pytest.mark.parametrize("alpha", WIDTHS)
def test_widths_of_version_2(alpha):
    channels, attention = WIDTHS[alpha]
    config = V2(width_multiplier=alpha)
    assert config.stage_channels == channels and config.hidden_sizes == attention
    assert [config.ffn_size(width) for width in attention] == [2 * width for width in attention]


def test_the_feed_forward_width_is_a_multiple_of_16():
    assert [V2().ffn_size(width) for width in (8, 12, 20, 72)] == [16, 16, 32, 144]
    assert V2(ffn_multiplier=1).ffn_size(8) == 16


def test_downsampling_rules():
    """Stride, dilation of the inverted residual, dilation of version 2's local convolution."""
    assert downsampling_rules(32) == (DownsamplingRule(2, 1, 1),) * 3
    assert downsampling_rules(16) == (DownsamplingRule(2, 1, 1), DownsamplingRule(2, 1, 1), DownsamplingRule(1, 1, 2))
    assert downsampling_rules(8) == (DownsamplingRule(2, 1, 1), DownsamplingRule(1, 1, 2), DownsamplingRule(1, 2, 4))


@pytest.mark.parametrize(
    ("output_stride", "strides"), [(32, (2, 2, 4, 8, 16, 32)), (16, (2, 2, 4, 8, 16, 16)), (8, (2, 2, 4, 8, 8, 8))]
)
def test_stage_strides(output_stride, strides):
    assert V1(output_stride=output_stride).stage_strides == strides == V2(output_stride=output_stride).stage_strides


def test_patch_sizes():
    assert V1().patch_sizes == (2, 2, 2) and V2(patch_size=[8, 4, 2]).patch_sizes == (8, 4, 2)


# --------------------------------------------------------------------------------------------------
# Presets
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "hidden", "neck", "expand"),
    [
        ("xxs", [64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
        ("xs", [96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
        ("s", [144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
    ],
)
def test_version_1_presets(size, hidden, neck, expand):
    config = V1.from_preset(f"mobilevit-{size}")
    assert (config.hidden_sizes, config.neck_hidden_sizes, config.expand_ratio) == (hidden, neck, expand)
    assert (config.num_attention_heads, config.mlp_ratio, config.patch_size, config.output_stride) == (4, 2.0, 2, 32)
    assert config.hidden_dropout_prob == (0.05 if size == "xxs" else 0.1) and config.classifier_dropout_prob == 0.1
    assert config.num_labels == 1000 and config.id2label[291] == "lion"


@pytest.mark.parametrize("alpha", WIDTHS)
def test_version_2_presets(alpha):
    config = V2.from_preset(f"mobilevitv2-{alpha}")
    assert config.width_multiplier == alpha and config.stage_channels == WIDTHS[alpha][0]
    assert config.num_labels == 1000


def test_a_preset_can_be_changed():
    assert V1.from_preset("mobilevit-xs", num_labels=10).num_labels == 10
    assert V2.from_preset("mobilevitv2-0.5", id2label={0: "cat", 1: "dog"}).label2id == {"cat": 0, "dog": 1}
    assert V1.from_preset("mobilevit-s", output_stride=16).output_stride == 16
    with pytest.raises(ConfigError, match="output_stride"):
        V1.from_preset("mobilevit-s", output_stride=12)


def test_a_preset_of_the_other_version_or_of_nobody_is_refused():
    with pytest.raises(ConfigError, match="'mobilevitv2-1.0' is a mobilevitv2 checkpoint, but MobileViTConfig"):
        V1.from_preset("mobilevitv2-1.0")
    with pytest.raises(NotFoundError, match="mobilevit-xxs"):
        V1.from_preset("mobilevit-xxx")


# --------------------------------------------------------------------------------------------------
# The same without transformers
# --------------------------------------------------------------------------------------------------

NAMES = {1: "lynx", 0: "quokka"}
OF_NETWORKS = ("stage_channels", "stage_strides", "patch_sizes", "hidden_sizes", "num_labels", "id2label", "model_type")


@BOTH
def test_defaults_are_those_of_stock_transformers(cls):
    stock = STOCK[cls]().to_dict()
    shared = {name: value for name, value in cls.defaults.items() if name in stock}
    assert shared == {name: stock[name] for name in shared}
    assert set(cls.defaults) - set(shared) <= {"n_attn_blocks", "attention_head_size", "use_fusion", "ffn_dropout",
                                               "hidden_dropout_prob", "attn_norm", "odd_map"}  # fmt: skip


@pytest.mark.parametrize("preset", [p.name for p in list_presets("image-classification")])
def test_a_file_describes_the_same_network_without_transformers(preset):
    row = get_preset(preset)
    config = CONFIG_CLASSES[row.model_type].from_preset(preset)
    for data in (config.to_dict(), {"model_type": row.model_type, **row.config, "id2label": config.id2label}):
        network = network_of(json.loads(json.dumps(data)))
        names = {*OF_NETWORKS, *config.defaults}
        assert {n: getattr(network, n, None) for n in names} == {n: getattr(config, n, None) for n in names}
        assert full_config(network).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_sizes": [4, 8, 8]},
        {"hidden_sizes": [8, 8, 9]},
        {"hiden_act": "relu"},
        {"auto_map": {"AutoModel": "x"}},
        {"num_labels": 3},
        {"label2id": {"lynx": 0, "quokka": 1}},
        {"id2label": {}},
        {"id2label": {"0": "quokka", "2": "lynx"}},
        {"model_type": "resnet"},
        {"neck_hidden_sizes": [4096] * 7, "hidden_sizes": [1024] * 3, "n_attn_blocks": [16] * 3},
    ],
)
def test_a_file_that_needs_a_word_is_left_to_the_config(change):
    assert network_of(file_content(V1, id2label=NAMES)) is not None
    assert network_of(file_content(V1, id2label=NAMES) | change) is None
