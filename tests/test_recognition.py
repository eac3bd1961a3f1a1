"""What a file holds is told from names and shapes alone, however the file came about."""

import gzip
import json
from functools import cache

import pytest
import reference

from mobilevit_hub.conversion.recognition import (
    Recognised,
    backbone_of,
    backbones,
    config_of,
    head_in,
    recognise,
    scheme_in,
    twins_of,
)
from mobilevit_hub.errors import CheckpointError
from mobilevit_hub.hub.presets import get_preset, list_presets
from mobilevit_hub.network.configuration import CONFIG_CLASSES, MobileViTConfig, MobileViTV2Config
from mobilevit_hub.network.names import renames
from mobilevit_hub.network.structure import tensor_shapes

# Segmenters and detectors; `test_names.py` says where they come from.
HEADS = json.loads(gzip.decompress((reference.FOLDER / "heads.json.gz").read_bytes()))
LAST = {
    "deeplabv3": "seg_head.classifier.block.conv",
    "pspnet": "seg_head.classifier.block.conv",
    "ssdlite": "ssd_heads.5.loc_cls_layer.block.conv",
}
TINY = MobileViTConfig(hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 16, 24, 32], num_attention_heads=2)

VARIANTS = pytest.mark.parametrize("variant", reference.VARIANTS)
OTHERS = pytest.mark.parametrize("variant", HEADS["cvnets"])
SCHEMES = pytest.mark.parametrize("scheme", ["cvnets", "timm", "transformers"])


def alias(variant):
    """Alias of the published network behind a name of the reference: `mobilevit-s` for `deeplabv3_mobilevit_s`."""
    family, size = variant.split("_")[-2:]
    return f"{family}-{size if family == 'mobilevit' else int(size) / 100}"


@cache
def classifier(variant, scheme):
    """Shapes of a published classifier by the names of a scheme."""
    shapes = {}
    for name, shape in reference.manifest()[variant]["tensors"]:
        new = reference.new_names(variant, name, scheme)
        shapes |= {part: (shape[0] // len(new), *shape[1:]) if shape else () for part in new}
    return shapes


def other(variant, scheme="cvnets"):
    """Shapes of a segmenter or detector."""
    return {name: tuple(shape) for name, shape, *_ in HEADS[scheme][variant]}


def with_rows(shapes, layer, rows):
    """The same with another number of rows in the last layer."""
    return shapes | {f"{layer}.weight": (rows, *shapes[f"{layer}.weight"][1:]), f"{layer}.bias": (rows,)}


def last_layer(shapes):
    """Name of a classifier's last layer in any scheme."""
    return next(name for name in shapes if name.startswith(("classifier", "head.fc"))).rsplit(".", 1)[0]


def refused(shapes, *words):
    """The message with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        recognise(shapes, "w.pt")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("w.pt: ")
    assert caught.value.path == "w.pt"
    for word in words:
        assert word in message, message
    return message


# --------------------------------------------------------------------------------------------------
# What is recognised
# --------------------------------------------------------------------------------------------------


@VARIANTS
@SCHEMES
def test_classifiers_are_recognised_in_each_scheme(variant, scheme):
    shapes = classifier(variant, scheme)
    found = recognise(shapes, "w.pt")
    assert found == Recognised(scheme, alias(variant), "classifier", 1000)
    assert found.title == f"a classifier ({alias(variant)}, 1000 labels)"
    for labels in (10, 200):
        changed = with_rows(shapes, last_layer(shapes), labels)
        assert recognise(changed, "w.pt") == found._replace(num_labels=labels)


@OTHERS
def test_segmenters_and_detectors_are_recognised(variant):
    about, shapes = HEADS["variants"][variant], other(variant)
    head, labels = about["head"], about["num_labels"]
    found = recognise(shapes, "w.pt")
    assert found == Recognised("cvnets", alias(variant), head, labels)
    title = {"deeplabv3": "a DeepLabv3 segmentation network", "pspnet": "a PSPNet segmentation network", "ssdlite": "an SSDLite detector"}  # fmt: skip
    assert found.title == f"{title[head]} ({alias(variant)}, {labels} labels)"
    for labels in (10, 200):  # of a detector four boxes, each with four sides and the background
        changed = with_rows(shapes, LAST[head], 4 * (4 + labels + 1) if head == "ssdlite" else labels)
        assert recognise(changed, "w.pt") == found._replace(num_labels=labels)
    without = {name: shape for name, shape in shapes.items() if ".aux_head." not in name}
    assert recognise(without, "w.pt") == found


@pytest.mark.parametrize("variant", HEADS["transformers"])
def test_deeplabv3_of_transformers_is_recognised(variant):
    shapes = other(variant, "transformers")
    found = recognise(shapes, "w.pt")
    assert found == Recognised("transformers", alias(variant), "deeplabv3", 21)
    changed = with_rows(shapes, "segmentation_head.classifier.convolution", 150)
    assert recognise(changed, "w.pt") == found._replace(num_labels=150)


@pytest.mark.parametrize("variant", ["deeplabv3_mobilevit_s", "deeplabv3_mobilevit_xxs"])
def test_deeplabv3_of_the_first_release_is_recognised(variant):
    longer = {name.replace("seg_head.classifier.", "seg_head.classifier.classifier."): s for name, s in other(variant).items()}  # fmt: skip
    shapes = {name: shape for name, shape in longer.items() if ".aux_head." not in name}
    assert recognise(shapes, "w.pt") == Recognised("cvnets-0.1", alias(variant), "deeplabv3", 21)


@pytest.mark.parametrize("head", ["classifier", "deeplabv3", "pspnet", "ssdlite"])
def test_our_own_names_are_recognised_with_each_head(head):
    shapes = tensor_shapes(config_of(get_preset("mobilevitv2-0.75"), num_labels=9), head)
    assert recognise(shapes, "w.pt") == Recognised("transformers", "mobilevitv2-0.75", head, 9)


@VARIANTS
@SCHEMES
def test_networks_without_a_head_are_recognised(variant, scheme):
    shapes = {name: s for name, s in classifier(variant, scheme).items() if not name.startswith(("classifier", "head"))}
    found = recognise(shapes, "w.pt")
    assert found == Recognised(scheme, alias(variant), None, None)
    assert found.title == f"a network without a head ({alias(variant)})"


# --------------------------------------------------------------------------------------------------
# What is damaged is still recognised: the strict reader names what is wrong
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_175"])
@SCHEMES
def test_a_damaged_classifier_is_still_recognised(variant, scheme):
    shapes = classifier(variant, scheme)
    found = Recognised(scheme, alias(variant), "classifier", 1000)
    last = last_layer(shapes)
    names = [name for name in shapes if not name.startswith(last)]
    for lost in (names[:1], names[-1:], names[:60], names[-60:], names[::3], [f"{last}.bias"]):
        rest = {name: shape for name, shape in shapes.items() if name not in lost}
        assert recognise(rest, "w.pt") == found
    for name in (names[0], names[len(names) // 2], f"{last}.bias"):
        assert recognise(shapes | {name: (3, 3)}, "w.pt") == found
    assert recognise(shapes | {"extra": (1,)}, "w.pt") == found
    no_counters = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    assert recognise(no_counters, "w.pt") == found
    half = dict(list(no_counters.items())[: int(0.53 * len(no_counters))])
    assert recognise(half, "w.pt") == Recognised(scheme, alias(variant), None, None)


@OTHERS
def test_a_damaged_segmenter_or_detector_is_still_recognised(variant):
    shapes = other(variant)
    found = recognise(shapes, "w.pt")
    names = [name for name in shapes if not name.startswith(LAST[found.head])]
    for lost in (names[:1], names[-1:], names[::3]):
        assert recognise({name: shape for name, shape in shapes.items() if name not in lost}, "w.pt") == found
    assert recognise(shapes | {names[0]: (3, 3)}, "w.pt") == found


@pytest.mark.parametrize(
    "variant",
    ["mobilevit_s", "mobilevitv2_100", "deeplabv3_mobilevit_s", "pspnet_mobilevitv2_050", "ssd_mobilevit_xxs"],
)
@pytest.mark.parametrize("wrong", [None, (), (0, 5)])
def test_a_last_layer_that_tells_no_number_of_labels(variant, wrong):
    """Missing, a single number, or empty."""
    shapes = classifier(variant, "cvnets") if variant in reference.VARIANTS else other(variant)
    found = recognise(shapes, "w.pt")
    layer = LAST.get(found.head) or last_layer(shapes)
    rest = {name: shape for name, shape in shapes.items() if name != f"{layer}.weight"}
    damaged = recognise(rest if wrong is None else rest | {f"{layer}.weight": wrong}, "w.pt")
    assert damaged[:3] == found[:3]
    assert damaged.num_labels in (0, None)


# --------------------------------------------------------------------------------------------------
# What is refused
# --------------------------------------------------------------------------------------------------

RESNET = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "layer1.0.conv1.weight": (64, 64, 3, 3), "fc.weight": (1000, 512)}  # fmt: skip
FOREIGN = "these are not the tensors of a MobileViT as ml-cvnets, timm or transformers name them"


def test_other_networks_are_refused_with_their_family():
    refused(RESNET, FOREIGN, "bn1.weight, conv1.weight, fc.weight", "The names look like a ResNet's.")
    refused({"vit.embeddings.cls_token": (1, 1, 192)}, FOREIGN, "The names look like a ViT's.")
    refused({"a": (1,), "b": (2,)}, FOREIGN, "a, b")


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.encoder."])
@SCHEMES
def test_names_with_a_foreign_prefix_are_refused(prefix, scheme):
    shapes = {prefix + name: shape for name, shape in classifier("mobilevit_s", scheme).items()}
    refused(shapes, FOREIGN, sorted(shapes)[0], f"and {len(shapes) - 5} more")


def test_a_few_names_of_a_mobilevit_are_not_enough():
    shapes = classifier("mobilevit_s", "timm")
    few = dict(list(shapes.items())[:100])
    refused(few, FOREIGN, "The names look like timm's.")


def test_a_file_without_tensors_is_refused():
    message = refused({})
    assert not message.endswith(": .")


@pytest.mark.parametrize("scheme", ["cvnets", "timm"])
@pytest.mark.parametrize("config", [TINY, MobileViTV2Config(width_multiplier=0.3)], ids=["mobilevit", "mobilevitv2"])
def test_widths_of_no_published_size_are_refused(config, scheme):
    words = (f"names are those of {config.model_type}, but the shapes of no published size", "(--model)")
    refused({rename.theirs: rename.shape for rename in renames(config, scheme)}, *words)
    refused(tensor_shapes(config), *words)


# --------------------------------------------------------------------------------------------------
# The published networks
# --------------------------------------------------------------------------------------------------


def test_there_are_ten_published_networks():
    assert sorted(backbones()) == sorted(alias(variant) for variant in reference.VARIANTS)


def test_twins_differ_in_their_values_only():
    assert [row.name for row in twins_of(get_preset("mobilevit-s"))] == ["mobilevit-s"]
    small = ["mobilevitv2-0.5", "mobilevitv2-0.5-384"]
    large = ["mobilevitv2-2.0", "mobilevitv2-2.0-384", "mobilevitv2-2.0-in22k", "mobilevitv2-2.0-in22k-384"]
    for names in (small, large):
        for name in names:
            assert [row.name for row in twins_of(get_preset(name))] == names
    # The one that this package trained has the widths of Apple's, and is no published file.
    assert [row.name for row in twins_of(get_preset("mobilevit-xxs-tiny-imagenet"))] == ["mobilevit-xxs"]


def test_the_backbone_of_a_config_is_the_first_of_its_twins():
    for row in list_presets("image-classification"):
        config = CONFIG_CLASSES[row.model_type](**row.config, num_labels=row.num_labels)
        assert backbone_of(config) == twins_of(row)[0].name, row.name


def test_only_what_changes_shapes_changes_the_backbone():
    small = get_preset("mobilevit-s")
    same = {"num_labels": 3, "image_size": 320, "patch_size": 4, "output_stride": 8, "hidden_dropout_prob": 0.5}
    assert backbone_of(config_of(small, **same)) == "mobilevit-s"
    for fields in ({"use_fusion": False}, {"qkv_bias": False}, {"expand_ratio": 2}, {"n_attn_blocks": [2, 4, 4]}, {"num_channels": 1}):  # fmt: skip
        assert backbone_of(config_of(small, **fields)) is None
    assert backbone_of(TINY) is None
    assert backbone_of(MobileViTV2Config(width_multiplier=1.1)) is None


def test_the_config_of_a_row_has_a_thousand_nameless_labels():
    for row in list_presets():
        config = config_of(row)
        assert type(config) is CONFIG_CLASSES[row.model_type], row.name
        for name, value in row.config.items():
            assert getattr(config, name) == (list(value) if isinstance(value, tuple) else value), row.name
        assert config.num_labels == 1000, row.name
        assert config.id2label[999] == "LABEL_999", row.name


def test_the_config_of_a_row_takes_changes():
    config = config_of(get_preset("mobilevitv2-0.5"), id2label={0: "cat", 1: "dog"}, num_labels=2, attn_norm="layer")
    assert (config.num_labels, config.id2label[1], config.attn_norm) == (2, "dog", "layer")
    assert config.width_multiplier == 0.5


@SCHEMES
@pytest.mark.parametrize("variant", ["mobilevit_xs", "mobilevitv2_125"])
def test_scheme_and_head_of_tensors_that_a_config_describes(variant, scheme):
    shapes = classifier(variant, scheme)
    assert (scheme_in(shapes), head_in(shapes)) == (scheme, "classifier")
    encoder = {name: shape for name, shape in shapes.items() if not name.startswith(("classifier", "head"))}
    assert (scheme_in(encoder), head_in(encoder)) == (scheme, None)


def test_scheme_and_head_do_not_depend_on_widths():
    for scheme in ("cvnets", "timm"):
        shapes = {rename.theirs: rename.shape for rename in renames(TINY, scheme)}
        assert (scheme_in(shapes), head_in(shapes)) == (scheme, "classifier")
    for head in (None, "classifier", "deeplabv3", "pspnet", "ssdlite"):
        shapes = tensor_shapes(TINY, head)
        assert (scheme_in(shapes), head_in(shapes)) == ("transformers", head)
    assert head_in({}) is None


@OTHERS
def test_heads_are_told_from_the_names_of_all_schemes(variant):
    head = HEADS["variants"][variant]["head"]
    assert head_in(other(variant)) == head
    if variant in HEADS["transformers"]:
        assert head_in(other(variant, "transformers")) == head
