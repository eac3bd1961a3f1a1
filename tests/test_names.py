"""Tensor names and shapes of all published networks in all schemes, against lists that were made apart from ours.

Classifiers: Apple's names from `reference/cases.json.gz`, brought into timm's and transformers' by the regular
expressions of `reference.py`. Segmenters and detectors: `reference/heads.json.gz`, the state dicts of Apple's
ml-cvnets (commit 77717569ab4a852614dae01f010b32b820cb33bb, auxiliary head included) as `[name, shape]` in their
order, and those of stock transformers' DeepLabv3 as `[name, shape, position of the tensor at Apple's]`. Numbers of
parameters and entries were counted on Apple's networks.
"""

import gzip
import json
import math

import numpy as np
import pytest
import reference

from mobilevit_hub.checkpoints.fitting import LoadReport, fit_tensors, guess_family
from mobilevit_hub.errors import CheckpointError
from mobilevit_hub.hub.presets import get_preset, list_presets
from mobilevit_hub.network.configuration import CONFIG_CLASSES, MobileViTConfig, MobileViTV2Config, config_from_dict
from mobilevit_hub.network.names import SCHEMES, renames, to_ours, to_theirs
from mobilevit_hub.network.structure import COUNTER, tensor_shapes

MANIFEST = reference.manifest()
HEADS = json.loads(gzip.decompress((reference.FOLDER / "heads.json.gz").read_bytes()))
TINY = {
    1: {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 16, 24, 32], "num_attention_heads": 2},
    2: {"width_multiplier": 0.25},
}

CLASSIFIERS = pytest.mark.parametrize("variant", reference.VARIANTS)
OTHERS = pytest.mark.parametrize("variant", HEADS["cvnets"])
ROWS = pytest.mark.parametrize("row", list_presets(), ids=lambda row: row.name)


def tiny_config(version, **fields):
    cls = MobileViTConfig if version == 1 else MobileViTV2Config
    return cls(**{**TINY[version], "num_labels": 7, "aspp_out_channels": 20, **fields})


def config_of(variant, **fields):
    """The config of a published size, from the reference."""
    data = {key: value for key, value in reference.config(variant).items() if key not in ("id2label", "label2id")}
    return config_from_dict(data | {"num_labels": 1000} | fields)


def network_of(variant):
    """Config and head of a segmenter or detector."""
    about = dict(HEADS["variants"][variant])
    head = about.pop("head")
    return config_of(variant.split("_", 1)[1], **about), head


def config_of_row(row, **fields):
    return CONFIG_CLASSES[row.model_type](**{**row.config, "num_labels": row.num_labels, **fields})


def head_of(row):
    start = row.name.split("-")[0]
    return start if start in ("deeplabv3", "pspnet", "ssdlite") else "classifier"


def their_shapes(table):
    """Their names and shapes in order, as the reference has them."""
    return [[rename.theirs, list(rename.shape)] for rename in table]


def our_shapes(config, *args, **options):
    return [[name, list(shape)] for name, shape in tensor_shapes(config, *args, **options).items()]


def parameters(config, *args, start="", **options):
    """How many numbers training changes in the tensors whose names begin with `start`."""
    ends = ("running_mean", "running_var", COUNTER)
    shapes = tensor_shapes(config, *args, **options).items()
    return sum(math.prod(shape) for name, shape in shapes if name.startswith(start) and not name.endswith(ends))


# --------------------------------------------------------------------------------------------------
# Published networks
# --------------------------------------------------------------------------------------------------


@CLASSIFIERS
@pytest.mark.parametrize("scheme", ["cvnets", "cvnets-0.1"])
def test_classifiers_have_apples_names_in_apples_order(variant, scheme):
    assert their_shapes(renames(config_of(variant), scheme)) == MANIFEST[variant]["tensors"]


@CLASSIFIERS
@pytest.mark.parametrize("scheme", ["cvnets", "timm"])
def test_classifiers_become_the_names_that_regular_expressions_make(variant, scheme):
    config, wanted, ours = config_of(variant), [], []
    for name, shape in MANIFEST[variant]["tensors"]:
        new = reference.new_names(variant, name, "transformers")
        wanted.append((reference.new_names(variant, name, scheme), new, shape))
        ours += [[part, [shape[0] // len(new), *shape[1:]] if shape else []] for part in new]
    assert [([r.theirs], list(r.ours), list(r.shape)) for r in renames(config, scheme)] == wanted
    assert our_shapes(config) == ours


@OTHERS
def test_segmenters_and_detectors_have_apples_names_in_apples_order(variant):
    config, head = network_of(variant)
    wanted = HEADS["cvnets"][variant]
    assert their_shapes(renames(config, "cvnets", head, auxiliary=True)) == wanted
    without = [row for row in wanted if not row[0].startswith("seg_head.aux_head.")]
    assert len(without) == len(wanted) - (8 if head in ("deeplabv3", "pspnet") else 0)
    assert their_shapes(renames(config, "cvnets", head)) == without


@pytest.mark.parametrize("variant", HEADS["transformers"])
def test_deeplabv3_becomes_the_names_of_transformers(variant):
    config, head = network_of(variant)
    wanted = HEADS["transformers"][variant]
    assert our_shapes(config, head) == [[name, shape] for name, shape, _ in wanted]
    theirs = {ours: rename.theirs for rename in renames(config, "cvnets", head) for ours in rename.ours}
    assert theirs == {name: HEADS["cvnets"][variant][position][0] for name, _, position in wanted}


@pytest.mark.parametrize("variant", ["deeplabv3_mobilevit_s", "deeplabv3_mobilevit_xxs"])
def test_the_first_release_names_the_classifier_of_deeplabv3_differently(variant):
    config, head = network_of(variant)
    wanted = [row for row in HEADS["cvnets"][variant] if not row[0].startswith("seg_head.aux_head.")]
    renamed = [
        [name.replace("seg_head.classifier.", "seg_head.classifier.classifier."), shape] for name, shape in wanted
    ]
    assert len(wanted) == 341
    assert [old == new for old, new in zip(wanted, renamed, strict=True)] == [True] * 339 + [False] * 2
    assert their_shapes(renames(config, "cvnets-0.1", head)) == renamed


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "ssdlite"])
def test_timm_has_no_names_for_segmenters_and_detectors(head):
    with pytest.raises(KeyError):
        list(renames(tiny_config(1), "timm", head))


# --------------------------------------------------------------------------------------------------
# Counts
# --------------------------------------------------------------------------------------------------

# Entries of Apple's state dicts and the batch counters among them; segmenters with their auxiliary head.
ENTRIES = {
    "mobilevit": {"classifier": 311, "deeplabv3": 349, "ssdlite": 394},
    "mobilevitv2": {"classifier": 269, "deeplabv3": 313, "pspnet": 307, "ssdlite": 358},
}
COUNTERS = {"mobilevit": 32, "mobilevitv2": 25}
# Parameters without and with the auxiliary head, DeepLabv3 with 512 channels: DeepLabv3 for Pascal VOC, PSPNet for
# Pascal VOC, DeepLabv3 for ADE20K, PSPNet for ADE20K.
SEGMENTERS = {
    "mobilevit-xxs": ((3_440_261, 3_516_954),),
    "mobilevit-xs": ((4_648_261, 4_743_386),),
    "mobilevit-s": ((8_537_269, 8_687_690),),
    "mobilevitv2-0.5": ((6_242_318, 6_466_467), (3_550_734, 3_774_883), (6_308_495, 6_549_285), (3_616_911, 3_857_701)),
    "mobilevitv2-0.75": ((9_510_278, 9_845_019), (6_179_974, 6_514_715), (9_576_455, 9_927_837), (6_246_151, 6_597_533)),
    "mobilevitv2-1.0": ((13_318_654, 13_763_987), (9_382_398, 9_827_731), (13_384_831, 13_846_805), (9_448_575, 9_910_549)),
    "mobilevitv2-1.25": ((17_667_446, 18_223_371), (13_158_006, 13_713_931), (17_733_623, 18_306_189), (13_224_183, 13_796_749)),
    "mobilevitv2-1.5": ((22_556_654, 23_306_483), (17_506_798, 18_256_627), (22_622_831, 23_391_365), (17_572_975, 18_341_509)),
    "mobilevitv2-1.75": ((27_986_278, 29_006_227), (22_428_774, 23_448_723), (28_052_455, 29_094_205), (22_494_951, 23_536_701)),
    "mobilevitv2-2.0": ((33_956_318, 35_287_859), (27_923_934, 29_255_475), (34_022_495, 35_378_933), (27_990_111, 29_346_549)),
}  # fmt: skip
# Parameters of the extra layers and of the heads.
DETECTORS = {
    "mobilevit-xxs": (83_952, 746_314),
    "mobilevit-xs": (88_224, 758_602),
    "mobilevit-s": (105_312, 799_562),
    "mobilevitv2-0.5": (130_944, 790_858),
    "mobilevitv2-0.75": (165_120, 938_826),
    "mobilevitv2-1.0": (199_296, 1_020_746),
    "mobilevitv2-1.25": (233_472, 1_102_666),
    "mobilevitv2-1.5": (267_648, 1_184_586),
    "mobilevitv2-1.75": (301_824, 1_266_506),
    "mobilevitv2-2.0": (336_000, 1_348_426),
}


@ROWS
def test_shapes_sum_to_the_published_number_of_parameters(row):
    assert parameters(config_of_row(row), head_of(row)) == row.params


@ROWS
def test_each_entry_of_apples_state_dicts_has_one_name_on_each_side(row):
    config, head = config_of_row(row), head_of(row)
    table = list(renames(config, "cvnets", head, auxiliary=True))
    # The smallest detector needs one projection less.
    count = ENTRIES[row.model_type][head] - (6 if row.name == "ssdlite-mobilevitv2-0.5" else 0)
    assert len(table) == len({rename.theirs for rename in table}) == count
    ours = [name for rename in table for name in rename.ours]
    split = 36 if row.model_type == "mobilevit" else 0  # 9 layers, weight and bias, three in place of one
    assert len(ours) == len(set(ours)) == count + split
    assert ours == list(tensor_shapes(config, head, auxiliary=True))
    if head == "classifier":
        assert sum(name.endswith(COUNTER) for name in ours) == COUNTERS[row.model_type]


@pytest.mark.parametrize("encoder", SEGMENTERS)
def test_parameters_of_segmenters_with_and_without_the_auxiliary_head(encoder):
    networks = (("deeplabv3", 21), ("pspnet", 21), ("deeplabv3", 150), ("pspnet", 150))
    for (head, num_labels), wanted in zip(networks, SEGMENTERS[encoder], strict=False):
        config = config_of_row(get_preset(encoder), num_labels=num_labels, aspp_out_channels=512)
        found = tuple(parameters(config, head, auxiliary=auxiliary) for auxiliary in (False, True))
        assert found == wanted
        assert parameters(config, head, start="segmentation_head.auxiliary.", auxiliary=True) == wanted[1] - wanted[0]


@pytest.mark.parametrize("encoder", DETECTORS)
def test_parameters_of_the_parts_of_detectors(encoder):
    config = config_of_row(get_preset(encoder), num_labels=80)
    starts = ("detection_head.extra_layers.", "detection_head.heads.")
    assert tuple(parameters(config, "ssdlite", start=start) for start in starts) == DETECTORS[encoder]


# --------------------------------------------------------------------------------------------------
# Unusual networks
# --------------------------------------------------------------------------------------------------

STOCK = [
    *((1, {name: value}) for name, value in (
        ("num_labels", 3), ("expand_ratio", 2.7), ("qkv_bias", False), ("conv_kernel_size", 5), ("mlp_ratio", 1.6),
        ("num_channels", 1), ("hidden_sizes", [40, 24, 56]), ("neck_hidden_sizes", [7, 9, 13, 17, 19, 23, 41]),
    )),
    *((2, {name: value}) for name, value in (
        ("num_labels", 3), ("expand_ratio", 2.7), ("conv_kernel_size", 5), ("n_attn_blocks", [1, 3, 2]),
        ("ffn_multiplier", 3), ("num_channels", 4), ("width_multiplier", 0.6), ("base_attn_unit_dims", [40, 72, 88]),
    )),
]  # fmt: skip
# What stock transformers cannot do, or does otherwise: there an expansion by 1 is a layer of its own.
OURS = [
    (1, {"expand_ratio": 1}), (1, {"use_fusion": False}), (1, {"n_attn_blocks": [1, 3, 2]}), (1, {"num_labels": 0}),
    (2, {"expand_ratio": 1}), (2, {"attn_norm": "layer"}), (2, {"num_labels": 0}),
]  # fmt: skip


def on_meta(cls, config):
    """Names and shapes of a PyTorch network that is built without memory."""
    import torch

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in cls(config).state_dict().items()}


@pytest.mark.torch
@pytest.mark.parametrize(("version", "fields"), STOCK + OURS)
def test_names_are_those_of_the_pytorch_twin(version, fields):
    import mobilevit_hub as mh

    config = tiny_config(version, **{"n_attn_blocks": [1, 1, 1], **fields})
    cls = mh.MobileViTForImageClassification if version == 1 else mh.MobileViTV2ForImageClassification
    assert tensor_shapes(config) == on_meta(cls, config)


@pytest.mark.torch
@pytest.mark.parametrize("version", [1, 2])
def test_names_without_a_head_are_those_of_the_base_model(version):
    import mobilevit_hub as mh

    config = tiny_config(version)
    base = on_meta(mh.MobileViTModel if version == 1 else mh.MobileViTV2Model, config)
    assert tensor_shapes(config, None) == {f"{config.model_type}.{name}": shape for name, shape in base.items()}


@pytest.mark.torch
@pytest.mark.parametrize(("version", "fields"), STOCK)
def test_names_are_those_of_stock_transformers(version, fields):
    import transformers

    config, name = tiny_config(version, **fields), "MobileViT" if version == 1 else "MobileViTV2"
    values = {**TINY[version], "num_labels": 7, "aspp_out_channels": 20, **fields}
    stock = getattr(transformers, f"{name}Config")(**values)
    for task, head in (("ImageClassification", "classifier"), ("SemanticSegmentation", "deeplabv3")):
        cls = getattr(transformers, f"{name}For{task}")
        assert tensor_shapes(config, head) == on_meta(cls, stock)


# --------------------------------------------------------------------------------------------------
# Both directions
# --------------------------------------------------------------------------------------------------

NETWORKS = [
    *((scheme, version, head) for scheme in ("cvnets", "timm") for version in (1, 2) for head in (None, "classifier")),
    *(("cvnets", version, head) for version in (1, 2) for head in ("deeplabv3", "pspnet", "ssdlite")),
    ("cvnets-0.1", 1, "deeplabv3"),
]


def random_bits(table, rng):
    """A tensor for each rename: any bits, so also NaN and infinity."""
    return {
        theirs: np.array(rng.integers(1000))
        if theirs.endswith(COUNTER)
        else np.frombuffer(rng.bytes(4 * math.prod(shape)), np.float32).reshape(shape)
        for theirs, _, shape, _ in table
    }


def content(tensors):
    """Everything about tensors, in their order."""
    return [(name, tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in tensors.items()]


@pytest.mark.parametrize(("scheme", "version", "head"), NETWORKS)
def test_there_and_back_is_the_same_to_the_bit(scheme, version, head, rng):
    config = tiny_config(version, n_attn_blocks=[1, 2, 1])
    table = list(renames(config, scheme, head, auxiliary=True))
    theirs = random_bits(table, rng)
    ours = to_ours(theirs, table)
    assert {name: tensor.shape for name, tensor in ours.items()} == tensor_shapes(config, head, auxiliary=True)
    back = to_theirs(ours, table)
    assert content(back) == content(theirs)
    assert content(to_ours(back, table)) == content(ours)


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("scheme", ["cvnets", "timm"])
def test_values_go_where_the_reference_puts_them(variant, scheme):
    table = list(renames(config_of(variant), scheme))
    theirs, ours = reference.state_dict(variant, scheme), reference.state_dict(variant)
    assert content(to_ours(theirs, table)) == content(ours)
    assert content(to_theirs(ours, table)) == content(theirs)


@pytest.mark.parametrize(("scheme", "version", "head"), NETWORKS)
def test_only_the_stem_of_timms_version_1_is_reversed(scheme, version, head, rng):
    table = list(renames(tiny_config(version, n_attn_blocks=[1, 2, 1]), scheme, head, auxiliary=True))
    theirs = random_bits(table, rng)
    ours = to_ours(theirs, table)
    parts = {rename.theirs: [ours[name] for name in rename.ours] for rename in table}
    joined = {name: np.concatenate(rows) if len(rows) > 1 else rows[0] for name, rows in parts.items()}
    changed = [name for name, tensor in theirs.items() if joined[name].tobytes() != tensor.tobytes()]
    assert changed == (["stem.conv.weight"] if (scheme, version) == ("timm", 1) else [])
    if changed:
        red, green, blue = np.split(theirs["stem.conv.weight"], 3, axis=1)
        stem = ours["mobilevit.conv_stem.convolution.weight"]
        assert stem.tobytes() == np.concatenate([blue, green, red], axis=1).tobytes()


@pytest.mark.parametrize(("scheme", "name"), [
    ("cvnets", "layer_4.1.global_rep.2.pre_norm_mha.1.qkv_proj"), ("timm", "stages.3.1.transformer.2.attn.qkv"),
])  # fmt: skip
def test_queries_keys_and_values_are_thirds_in_this_order(scheme, name, rng):
    table = list(renames(tiny_config(1), scheme))
    theirs = random_bits(table, rng)
    ours = to_ours(theirs, table)
    attention = "mobilevit.encoder.layer.3.transformer.layer.2.attention.attention"
    for leaf in ("weight", "bias"):
        whole = theirs[f"{name}.{leaf}"]
        assert len(whole) == 3 * 24
        for start, part in ((0, "query"), (24, "key"), (48, "value")):
            assert ours[f"{attention}.{part}.{leaf}"].tobytes() == whole[start : start + 24].tobytes()


# --------------------------------------------------------------------------------------------------
# Strictness
# --------------------------------------------------------------------------------------------------

STRICT = pytest.mark.parametrize(("scheme", "version"), [("cvnets", 1), ("cvnets", 2), ("timm", 1), ("timm", 2)])


def refused(call, *words):
    """The error of `call`: one line with all words."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return caught.value


@STRICT
def test_each_tensor_of_theirs_is_needed_in_its_shape(scheme, version, rng):
    table = list(renames(tiny_config(version, n_attn_blocks=[1, 1, 1]), scheme))
    good = random_bits(table, rng)
    needed = [name for name in good if not name.endswith(COUNTER)]
    error = refused(lambda: to_ours({}, table), f"{len(needed)} missing")
    assert (error.missing, error.unexpected, error.mismatched) == (needed, [], [])
    wrong = good | {name: good[name][None] for name in needed}
    error = refused(lambda: to_ours(wrong, table), f"{len(needed)} wrong shape")
    shapes = [f"{name} (found {[1, *good[name].shape]}, expected {list(good[name].shape)})" for name in needed]
    assert (error.missing, error.unexpected, error.mismatched) == ([], [], shapes)


@STRICT
def test_one_message_lists_all_that_is_wrong(scheme, version, rng):
    table = list(renames(tiny_config(version, n_attn_blocks=[1, 1, 1]), scheme))
    good = random_bits(table, rng)
    kernel, bias = (rename.theirs for rename in table[-2:])  # of the classifier
    lost = table[0].theirs
    wrong = {name: tensor for name, tensor in good.items() if name != lost}
    wrong |= {kernel: np.ascontiguousarray(good[kernel].T), "extra.b": good[bias], "extra.a": good[bias]}
    title = SCHEMES[scheme].title
    words = ("w.pt: ", f"as {title} names them", "1 missing", lost, "2 unexpected", "extra.a, extra.b", "1 wrong shape", kernel)  # fmt: skip
    error = refused(lambda: to_ours(wrong, table, "w.pt", title), *words)
    assert error.missing == [lost]
    assert error.unexpected == ["extra.a", "extra.b"]
    assert len(error.mismatched) == 1
    assert error.path == "w.pt"
    error = refused(lambda: to_ours(good | {"extra": good[bias]}, table), "1 unexpected (extra)")
    assert (error.missing, error.unexpected, error.mismatched) == ([], ["extra"], [])


@STRICT
def test_counters_may_be_absent_or_have_an_axis(scheme, version, rng):
    table = list(renames(tiny_config(version, n_attn_blocks=[1, 1, 1]), scheme))
    good = random_bits(table, rng)
    counters = {name: tensor for name, tensor in good.items() if name.endswith(COUNTER)}
    odd = good | {name: tensor[None] for name, tensor in counters.items()}
    assert content(to_ours(odd, table)) == content(to_ours(good, table))
    absent = {name: tensor for name, tensor in good.items() if name not in counters}
    ours = {name: tensor for name, tensor in to_ours(good, table).items() if not name.endswith(COUNTER)}
    assert content(to_ours(absent, table)) == content(ours)
    assert content(to_theirs(ours, table)) == content(absent)
    counter = next(iter(counters))
    error = refused(lambda: to_ours(good | {counter: np.zeros(2, np.int64)}, table), counter)
    assert error.mismatched == [f"{counter} (found [2], expected [])"]


@STRICT
def test_each_tensor_of_ours_is_needed(scheme, version, rng):
    table = list(renames(tiny_config(version, n_attn_blocks=[1, 1, 1]), scheme))
    ours = to_ours(random_bits(table, rng), table)
    needed = [name for name in ours if not name.endswith(COUNTER)]
    error = refused(lambda: to_theirs({}, table), f"{len(needed)} missing")
    assert (error.missing, error.unexpected) == (needed, [])
    # Also where it is one of the three that are one tensor of theirs.
    for lost in [name for name in needed if "layer.2.transformer.layer.0." in name]:
        less = {name: tensor for name, tensor in ours.items() if name != lost}
        error = refused(lambda less=less: to_theirs(less, table), f"1 missing ({lost})", "0 unexpected")
        assert (error.missing, error.unexpected) == ([lost], [])
    error = refused(lambda: to_theirs(ours | {"extra": ours["classifier.bias"]}, table), "1 unexpected (extra)")
    assert (error.missing, error.unexpected) == ([], ["extra"])


# --------------------------------------------------------------------------------------------------
# Fitting tensors to a network
# --------------------------------------------------------------------------------------------------


def fit(tensors, wanted, **options):
    return fit_tensors(tensors, wanted, path="w.bin", model_name="A network", prefix="mobilevit", **options)


@pytest.fixture
def ours(rng):
    """Random tensors of a tiny version 1 network by our names."""
    return {name: rng.random(shape, np.float32) for name, shape in tensor_shapes(tiny_config(1)).items()}


def test_a_base_model_takes_its_names_with_and_without_prefix_and_leaves_the_head_aside(ours):
    encoder = {name: tensor for name, tensor in ours.items() if not name.startswith("classifier.")}
    plain = {name.removeprefix("mobilevit."): tensor for name, tensor in encoder.items()}
    for wanted in (encoder, plain):
        shapes = {name: tensor.shape for name, tensor in wanted.items()}
        for given in (encoder, plain, ours):
            found, report = fit(given, shapes)
            assert content(found) == content(wanted)
            assert report == LoadReport(dtype="float32")


def test_two_tensors_for_one_weight_are_refused(ours):
    plain = {name.removeprefix("mobilevit."): tensor for name, tensor in ours.items() if "classifier" not in name}
    twice = plain | {"mobilevit.conv_1x1_exp.convolution.weight": plain["conv_1x1_exp.convolution.weight"] + 1}
    error = refused(lambda: fit(twice, {name: tensor.shape for name, tensor in plain.items()}))
    assert error.unexpected == ["mobilevit.conv_1x1_exp.convolution.weight"]


def test_the_report_names_each_number_type(ours):
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    mixed = ours | {"classifier.bias": ours["classifier.bias"].astype(np.float16)}
    assert fit(mixed, shapes)[1].dtype == "float16/float32"


def test_the_weights_of_a_segmenter_are_called_so(ours):
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    more = ours | {"segmentation_head.classifier.convolution.bias": np.zeros(21, np.float32)}
    refused(lambda: fit(more, shapes), "w.bin: ", "A network", "1 unexpected", "This looks like a segmentation")


@pytest.mark.parametrize(("name", "family"), [
    (MANIFEST["mobilevit_s"]["tensors"][6][0], "Apple's"),
    (HEADS["cvnets"]["ssd_mobilevit_s"][0][0], "Apple's (detection or segmentation)"),
    (HEADS["transformers"]["deeplabv3_mobilevit_s"][0][0], "MobileViT version 1"),
    (HEADS["transformers"]["deeplabv3_mobilevitv2_050"][0][0], "MobileViTv2"),
    (reference.new_names("mobilevit_s", MANIFEST["mobilevit_s"]["tensors"][50][0], "timm")[0], "timm's"),
    ("layer1.0.conv1.weight", "a ResNet's"),
    ("vit.embeddings.cls_token", "a ViT's"),
])  # fmt: skip
def test_families_are_told_by_a_name(name, family):
    assert guess_family(["something", name]) == f" The names look like {family}."
    assert guess_family(["something", f"x.{name}"]) == ""
