"""The table of published checkpoints against the facts that were collected apart from it.

The numbers below are counted on Apple's own models and quoted from Apple's and timm's tables; the
parameter and MAC counts are counted again on our networks.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mobilevit_hub.errors import ConfigError, InputError, NotFoundError
from mobilevit_hub.hub.imagenet import imagenet_labels, imagenet_wnids
from mobilevit_hub.hub.presets import PRESET_TASKS, check_name, find_preset, get_preset, list_presets
from mobilevit_hub.network.configuration import CONFIG_CLASSES, MobileViTConfig, MobileViTV2Config

# Parameters, MACs at 256 and at 384 pixels.
COUNTS = {
    "mobilevit-xxs": (1272024, 407364096, None),
    "mobilevit-xs": (2317848, 1025911808, None),
    "mobilevit-s": (5578632, 2000831488, None),
    "mobilevitv2-0.5": (1370593, 464594944, 1045018624),
    "mobilevitv2-0.75": (2866009, 1027980288, 2312475648),
    "mobilevitv2-1.0": (4901841, 1812090880, 4076564480),
    "mobilevitv2-1.25": (7478089, 2816926720, 6337285120),
    "mobilevitv2-1.5": (10594753, 4042487808, 9094637568),
    "mobilevitv2-1.75": (14251833, 5488774144, 12348621824),
    "mobilevitv2-2.0": (18449329, 7155785728, 16099237888),
}
# Apple's top-1; timm's top-1 and top-5.
TOP1 = {
    "mobilevit-xxs": (69.0, 68.936, 88.942),
    "mobilevit-xs": (74.7, 74.618, 92.350),
    "mobilevit-s": (78.3, 78.298, 94.168),
    "mobilevitv2-0.5": (70.18, 70.156, 89.930),
    "mobilevitv2-0.75": (75.56, 75.612, 92.754),
    "mobilevitv2-1.0": (78.09, 78.088, 94.170),
    "mobilevitv2-1.25": (79.65, 79.682, 94.844),
    "mobilevitv2-1.5": (80.38, 80.380, 95.050),
    "mobilevitv2-1.75": (80.84, 80.870, 95.280),
    "mobilevitv2-2.0": (81.17, 81.148, 95.380),
    "mobilevitv2-0.5-384": (72.14,),
    "mobilevitv2-0.75-384": (76.98,),
    "mobilevitv2-1.0-384": (79.68,),
    "mobilevitv2-1.25-384": (80.94,),
    "mobilevitv2-1.5-384": (81.50,),
    "mobilevitv2-1.75-384": (82.04,),
    "mobilevitv2-2.0-384": (82.17,),
    "mobilevitv2-1.5-in22k": (81.46, 81.466, 95.678),
    "mobilevitv2-1.75-in22k": (81.94, 81.950, 95.796),
    "mobilevitv2-2.0-in22k": (82.36, 82.320, 95.942),
    "mobilevitv2-1.5-in22k-384": (82.60, 82.606, 96.314),
    "mobilevitv2-1.75-in22k-384": (82.93, 82.920, 96.450),
    "mobilevitv2-2.0-in22k-384": (83.41, 83.430, 96.576),
}
# Parameters without the auxiliary head, mean IoU, output stride, ASPP channels (None: PSPNet).
SEGMENTERS = {
    "deeplabv3-mobilevit-xxs-voc": (1854853, 72.8, 16, 256),
    "deeplabv3-mobilevit-xs-voc": (2944069, 77.1, 16, 256),
    "deeplabv3-mobilevit-s-voc": (6357941, 79.3, 16, 256),
    "deeplabv3-mobilevit-s-os8-voc": (8537269, 79.44, 8, 512),
    "pspnet-mobilevitv2-0.5-voc": (3550734, 74.62, 16, None),
    "pspnet-mobilevitv2-0.75-voc": (6179974, 77.44, 16, None),
    "pspnet-mobilevitv2-1.0-voc": (9382398, 78.92, 16, None),
    "pspnet-mobilevitv2-1.25-voc": (13158006, 79.40, 16, None),
    "pspnet-mobilevitv2-1.5-voc": (17506798, 79.93, 16, None),
    "deeplabv3-mobilevitv2-0.5-voc": (6242318, 75.07, 16, 512),
    "deeplabv3-mobilevitv2-1.0-voc": (13318654, 78.94, 16, 512),
    "deeplabv3-mobilevitv2-1.25-voc": (17667446, 79.68, 16, 512),
    "deeplabv3-mobilevitv2-1.5-voc": (22556654, 80.30, 16, 512),
    "pspnet-mobilevitv2-0.5-ade20k": (3616911, 31.77, 8, None),
    "pspnet-mobilevitv2-0.75-ade20k": (6246151, 35.22, 8, None),
    "pspnet-mobilevitv2-1.0-ade20k": (9448575, 36.57, 8, None),
    "pspnet-mobilevitv2-1.25-ade20k": (13224183, 38.76, 8, None),
    "pspnet-mobilevitv2-1.5-ade20k": (17572975, 38.74, 8, None),
    "pspnet-mobilevitv2-1.75-ade20k": (22494951, 39.82, 8, None),
    "deeplabv3-mobilevitv2-0.5-ade20k": (6308495, 31.93, 8, 512),
    "deeplabv3-mobilevitv2-0.75-ade20k": (9576455, 34.70, 8, 512),
    "deeplabv3-mobilevitv2-1.0-ade20k": (13384831, 37.06, 8, 512),
    "deeplabv3-mobilevitv2-1.25-ade20k": (17733623, 38.42, 8, 512),
    "deeplabv3-mobilevitv2-1.5-ade20k": (22622831, 38.91, 8, 512),
    "deeplabv3-mobilevitv2-1.75-ade20k": (28052455, 39.53, 8, 512),
    "deeplabv3-mobilevitv2-2.0-ade20k": (34022495, 40.94, 8, 512),
}
# Parameters, MACs at 320 pixels, mAP.
DETECTORS = {
    "ssdlite-mobilevit-xxs": (1755050, 842026960, 19.9),
    "ssdlite-mobilevit-xs": (2742042, 1845432160, 24.8),
    "ssdlite-mobilevit-s": (5738826, 3426732960, 27.9),
    "ssdlite-mobilevitv2-0.5": (2035395, 890725760, 21.24),
    "ssdlite-mobilevitv2-0.75": (3584955, 1801154560, 24.57),
    "ssdlite-mobilevitv2-1.0": (5608883, 3049912960, 26.47),
    "ssdlite-mobilevitv2-1.25": (8173227, 4643554560, 27.85),
    "ssdlite-mobilevitv2-1.5": (11277987, 6582079360, 28.83),
    "ssdlite-mobilevitv2-1.75": (14923163, 8865487360, 29.52),
    "ssdlite-mobilevitv2-2.0": (19108755, 11493778560, 30.21),
}
EMBEDDED = "mobilevit-xxs-tiny-imagenet"


# The table ------------------------------------------------------------------------------------------


def test_each_published_checkpoint_has_one_row_and_no_other_exists():
    names = [row.name for row in list_presets()]
    assert sorted(names) == sorted([EMBEDDED, *TOP1, *SEGMENTERS, *DETECTORS])
    assert [len(list_presets(task)) for task in PRESET_TASKS] == [24, 26, 10]


@pytest.mark.parametrize("name", TOP1)
def test_classifiers_equal_the_facts(name):
    row = get_preset(name)
    params, macs_256, macs_384 = COUNTS[name.removesuffix("-384").removesuffix("-in22k")]
    at_384 = name.endswith("-384")
    assert (row.params, row.macs) == (params, macs_384 if at_384 else macs_256)
    assert (row.score, *(row.timm_scores or ())) == TOP1[name]
    assert (row.task, row.metric, row.dataset, row.num_labels) == (PRESET_TASKS[0], "top1", "imagenet-1k", 1000)
    assert (row.resize, row.crop) == ((384, 384) if at_384 else (288, 256))
    expected = ("bgr", "bilinear") if row.model_type == "mobilevit" else ("rgb", "bicubic")
    assert (row.channel_order, row.interpolation) == expected


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_equal_the_facts(name):
    row = get_preset(name)
    params, mean_iou, output_stride, aspp_channels = SEGMENTERS[name]
    assert (row.params, row.score, row.metric) == (params, mean_iou, "mean_iou")
    assert row.config["output_stride"] == output_stride
    assert row.config.get("aspp_out_channels") == aspp_channels
    if aspp_channels:
        assert row.config["atrous_rates"] == ((6, 12, 18) if output_stride == 16 else (12, 24, 36))
    assert (row.dataset, row.num_labels) == (("ade20k", 150) if name.endswith("ade20k") else ("pascal-voc", 21))
    assert (row.resolution, row.resize, row.crop) == (512, 512, None)
    first_release = name in list(SEGMENTERS)[:3]
    assert (row.channel_order == "bgr") is first_release
    assert row.keep_aspect is not first_release


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_equal_the_facts(name):
    row = get_preset(name)
    assert (row.params, row.macs, row.score) == DETECTORS[name]
    assert (row.metric, row.dataset, row.num_labels) == ("map", "coco", 80)
    assert (row.resolution, row.resize, row.crop, row.keep_aspect) == (320, 320, None, False)
    assert row.channel_order == ("bgr" if row.model_type == "mobilevit" else "rgb")


def test_each_row_says_how_to_feed_the_weights():
    for row in list_presets():
        assert row.channel_order in ("bgr", "rgb")
        assert row.interpolation in ("bilinear", "bicubic")
        assert row.resize >= (row.crop or row.resolution)
        if row.task == "image-classification":
            assert row.crop == row.resolution
        assert row.score is None or 0 < row.score < 100
        assert row.license.startswith("other: ")


def test_scores_of_apple_and_timm_agree():
    """timm measured them anew: a slip of a row or a column would be a whole point."""
    rows = [row for row in list_presets() if row.timm_scores]
    assert len(rows) == 16
    for row in rows:
        top1, top5 = row.timm_scores
        assert abs(row.score - top1) <= 0.1
        assert top1 < top5


def test_rows_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_preset("mobilevit-s").channel_order = "rgb"
    assert len(set(list_presets())) == 60


# Where weights live -----------------------------------------------------------------------------------


def test_only_384_without_imagenet_21k_is_not_on_the_hub():
    missing = {row.name for row in list_presets("image-classification") if not row.loadable}
    assert missing == {f"mobilevitv2-{w}-384" for w in ("0.5", "0.75", "1.0", "1.25", "1.5", "1.75", "2.0")}
    for name in missing:
        assert get_preset(name).apple_file in get_preset(name).unavailable


def test_segmenters_and_detectors_are_listed_but_not_loadable():
    for task in PRESET_TASKS[1:]:
        for row in list_presets(task):
            assert not row.loadable
            assert row.unavailable == f"{task} checkpoints are not loadable yet"


@pytest.mark.parametrize(
    ("name", "hub_id", "hub_format"),
    [
        ("mobilevit-xxs", "apple/mobilevit-xx-small", "transformers"),
        ("mobilevit-xs", "apple/mobilevit-x-small", "transformers"),
        ("mobilevit-s", "apple/mobilevit-small", "transformers"),
        ("mobilevitv2-1.0", "apple/mobilevitv2-1.0-imagenet1k-256", "transformers"),
        ("mobilevitv2-0.5", "timm/mobilevitv2_050.cvnets_in1k", "timm"),
        ("mobilevitv2-1.75-in22k", "timm/mobilevitv2_175.cvnets_in22k_ft_in1k", "timm"),
        ("mobilevitv2-2.0-in22k-384", "timm/mobilevitv2_200.cvnets_in22k_ft_in1k_384", "timm"),
        ("mobilevitv2-1.0-384", None, None),
        (EMBEDDED, None, None),
    ],
)
def test_hub_repository_of(name, hub_id, hub_format):
    row = get_preset(name)
    assert (row.hub_id, row.hub_format) == (hub_id, hub_format)


def test_timm_repositories_are_the_sixteen_that_timm_lists():
    widths = ("050", "075", "100", "125", "150", "175", "200")
    expected = {f"timm/mobilevit_{size}.cvnets_in1k" for size in ("xxs", "xs", "s")}
    expected |= {f"timm/mobilevitv2_{width}.cvnets_in1k" for width in widths}
    expected |= {f"timm/mobilevitv2_{width}.cvnets_in22k_ft_in1k" for width in widths[4:]}
    expected |= {f"timm/mobilevitv2_{width}.cvnets_in22k_ft_in1k_384" for width in widths[4:]}
    assert {row.timm_id for row in list_presets()} == expected | {None}


def test_apple_files_are_distinct():
    files = [row.apple_file for row in list_presets() if row.name != EMBEDDED]
    assert len(set(files)) == len(files) == 59
    assert all(file.endswith(".pt") for file in files)


# The networks -----------------------------------------------------------------------------------------


def test_config_of_each_row_builds():
    for row in list_presets():
        config = CONFIG_CLASSES[row.model_type].from_preset(row.name)
        assert config.num_labels == row.num_labels
        for name, value in row.config.items():
            built = getattr(config, name)
            assert (tuple(built) if isinstance(value, tuple) else built) == value
        if row.num_labels == 1000:
            assert config.id2label[207] == "golden retriever"


def test_config_of_the_other_version_is_refused():
    with pytest.raises(ConfigError, match="mobilevitv2"):
        MobileViTConfig.from_preset("mobilevitv2-1.0")
    with pytest.raises(ConfigError, match="mobilevit "):
        MobileViTV2Config.from_preset("mobilevit-s")


@pytest.mark.torch
@pytest.mark.parametrize("row", list_presets("image-classification"), ids=lambda row: row.name)
def test_our_network_has_the_counts_of_the_row(row):
    """Also the embedded row, which no published table covers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mobilevit_hub.pt.mobilevit import MobileViTForImageClassification
    from mobilevit_hub.pt.mobilevitv2 import MobileViTV2ForImageClassification

    classes = {"mobilevit": MobileViTForImageClassification, "mobilevitv2": MobileViTV2ForImageClassification}
    # The meta device knows shapes only: nothing is allocated or computed.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = classes[row.model_type](CONFIG_CLASSES[row.model_type].from_preset(row.name)).eval()
        model(torch.empty(1, 3, row.resolution, row.resolution))
    assert sum(p.numel() for p in model.parameters()) == row.params
    assert counter.get_total_flops() == 2 * row.macs


# Look-up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("mobilevit-s", "mobilevit-s"),
        ("mobilevit_s", "mobilevit-s"),
        ("MobileViT-S", "mobilevit-s"),
        ("apple/mobilevit-small", "mobilevit-s"),
        ("apple/mobilevit-xx-small", "mobilevit-xxs"),
        ("timm/mobilevit_xs.cvnets_in1k", "mobilevit-xs"),
        ("mobilevitv2_1.0", "mobilevitv2-1.0"),
        ("mobilevitv2_100", "mobilevitv2-1.0"),
        ("apple/mobilevitv2-1.0-imagenet1k-256", "mobilevitv2-1.0"),
        ("timm/mobilevitv2_075.cvnets_in1k", "mobilevitv2-0.75"),
        ("mobilevitv2_150.cvnets_in22k_ft_in1k_384", "mobilevitv2-1.5-in22k-384"),
        ("mobilevitv2_175_384_in22ft1k", "mobilevitv2-1.75-in22k-384"),
        ("mobilevitv2_200_in22ft1k", "mobilevitv2-2.0-in22k"),
        ("mobilevit_xxs_tiny_imagenet", EMBEDDED),
        ("deeplabv3_mobilevit_s", "deeplabv3-mobilevit-s-voc"),
        ("apple/deeplabv3-mobilevit-x-small", "deeplabv3-mobilevit-xs-voc"),
        ("deeplabv3-mobilevitv1", "deeplabv3-mobilevit-s-os8-voc"),
        ("apple/mobilevitv2-1.5-voc-deeplabv3", "deeplabv3-mobilevitv2-1.5-voc"),
        ("ssd_mobilevit_xs_320", "ssdlite-mobilevit-xs"),
        ("coco-ssd-mobilevitv2-1.25", "ssdlite-mobilevitv2-1.25"),
    ],
)
def test_other_spellings_find_the_same_row(spelling, name):
    assert find_preset(spelling) is get_preset(name)
    assert get_preset(name).name == name


def test_each_name_and_hub_id_finds_its_row():
    for row in list_presets():
        for spelling in (row.name, row.transformers_id, row.timm_id):
            if spelling:
                assert find_preset(spelling) is row
                assert find_preset(spelling.upper()) is row


@pytest.mark.parametrize("width", ["1.5", "1.75", "2.0"])
def test_names_that_timm_has_given_up_find_the_same_row(width):
    code = f"{round(100 * float(width))}"
    assert get_preset(f"mobilevitv2_{code}_in22ft1k").timm_id == f"timm/mobilevitv2_{code}.cvnets_in22k_ft_in1k"
    assert get_preset(f"mobilevitv2_{code}_384_in22ft1k").name == f"mobilevitv2-{width}-in22k-384"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mobilvit-s", ["mobilevit-s", "mobilevit-xs"]),
        # Apple gave the files of both data sets this stem.
        ("deeplabv3-mobilevitv2-1.0", ["deeplabv3-mobilevitv2-1.0-voc", "deeplabv3-mobilevitv2-1.0-ade20k"]),
        ("mobilevitv2-1.0-in22k", ["mobilevitv2-2.0-in22k", "mobilevitv2-1.5-in22k"]),
        ("someone/else", []),
        ("", []),
        (None, []),
        (["mobilevit-s"], []),
    ],
)
def test_unknown_name_suggests_the_nearest(name, nearest):
    assert find_preset(name) is None
    with pytest.raises(NotFoundError) as caught:
        get_preset(name)
    message = str(caught.value)
    assert message.startswith(f"Unknown checkpoint {name!r}. ")
    assert message.endswith("Run \"mobilevit-hub list\" or pass a Hub id such as 'apple/mobilevit-small' or a folder.")
    assert ("Did you mean" in message) is bool(nearest)
    assert sorted(caught.value.expected) == sorted(nearest)
    assert all(repr(suggestion) in message for suggestion in nearest)


@pytest.mark.parametrize("name", ["mobilvit-s", "no model", "x" * 5000, "a\0b"])
def test_names_that_cannot_be_opened_are_refused_early(name):
    with pytest.raises(NotFoundError, match="Unknown checkpoint"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["mobilevit-s", "MobileViT_S", "here", "other/model", "./nothing", "~nobody", "..", "a\\b"]
)
def test_names_that_may_be_opened_pass(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    check_name(name)


def test_unknown_task_is_refused():
    with pytest.raises(InputError, match="'segmentation'; expected one of image-classification"):
        list_presets("segmentation")


# Labels -----------------------------------------------------------------------------------------------


def test_labels_stand_in_the_order_of_the_logits():
    wnids, labels = imagenet_wnids(), imagenet_labels()
    assert len(labels) == len(wnids) == len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    for index, wnid, label in [
        (0, "n01440764", "tench"),
        (285, "n02124075", "Egyptian cat"),
        (504, "n03063599", "coffee mug"),
        (999, "n15075141", "toilet tissue"),
    ]:
        assert (wnids[index], labels[index]) == (wnid, label)


def test_labels_are_readable_and_distinct():
    labels = imagenet_labels()
    assert len(set(labels)) == 1000
    # WordNet has two classes of each of these names.
    assert [labels[i] for i in (134, 517, 638, 639)] == [
        "crane (bird)",
        "crane (machine)",
        "maillot",
        "maillot, tank suit",
    ]
    assert all(label == label.strip() and label.isprintable() for label in labels)
    labels.clear()
    assert len(imagenet_labels()) == 1000


# Import -----------------------------------------------------------------------------------------------


def test_import_loads_no_framework():
    code = (
        "import sys, mobilevit_hub.presets as p; p.get_preset('mobilevit-s'); p.imagenet_labels(); "
        "print([m for m in ('torch', 'tensorflow', 'keras', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    source = str(Path(sys.modules["mobilevit_hub"].__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": source}, check=True
    )
    assert done.stdout.strip() == "[]"
