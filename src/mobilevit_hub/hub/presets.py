"""The published checkpoints: one record a row, found by name without a network or a framework.

A row says which network the weights fit (`config`), how to feed them (`resize`, `crop`,
`interpolation`, `channel_order`), where they live, and what score their makers report.

Examples:
    >>> get_preset("timm/mobilevit_s.cvnets_in1k").name
    'mobilevit-s'
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import InputError, NotFoundError

Task = Literal["image-classification", "semantic-segmentation", "object-detection"]
PRESET_TASKS: tuple[Task, ...] = get_args(Task)

APPLE_LICENSE = "other: Apple sample code license, https://github.com/apple/ml-cvnets/blob/main/LICENSE"
TINY_IMAGENET_LICENSE = "other: Tiny ImageNet, non-commercial research and education"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published checkpoint. Images go in scaled to [0, 1]; no mean or deviation is subtracted."""

    name: str
    """The short name, such as `"mobilevitv2-1.5-in22k-384"`."""
    task: Task
    model_type: Literal["mobilevit", "mobilevitv2"]
    """The version, as `config.json` spells it."""
    config: dict[str, Any] = field(hash=False)
    """Fields of `MobileViTConfig` or `MobileViTV2Config`; `num_labels` stands beside it."""
    num_labels: int
    """Labels, with the background of Pascal VOC, without the background of detectors."""
    dataset: str
    """Data set of the labels and the score; names with `in22k` saw ImageNet-21k before it."""
    params: int
    """Trainable parameters, without the auxiliary head that segmenters have in training only."""
    macs: int | None = None
    """Multiply-accumulates for one image of `resolution`: convolutions, linear layers, attention products."""
    score: float | None = None
    """In percent, as published; None if not measured."""
    metric: Literal["top1", "mean_iou", "map"]
    """What `score` is; `map` is the mean over IoU 0.50 to 0.95."""
    score_source: str = "Apple's model zoo (CVNets)"
    timm_scores: tuple[float, float] | None = None
    """Top-1 and top-5 in percent that timm measured: all 50,000 images, RGB, bicubic."""
    resize: int
    """Shortest edge after resizing, in pixels; both edges where `keep_aspect` is false."""
    keep_aspect: bool = True
    crop: int | None = None
    """Side of the centre crop in pixels; None: the whole image."""
    interpolation: Literal["bilinear", "bicubic"]
    """Filter of the resize. The `"bgr"` rows were evaluated by OpenCV, which does not antialias."""
    channel_order: Literal["bgr", "rgb"]
    """Order in which Apple's file, and any Hub copy in the transformers format, expects the channels."""
    transformers_id: str | None = None
    """Hub repository in the transformers format."""
    timm_id: str | None = None
    """Hub repository in timm's format, always RGB: stems of version 1 have their input axis reversed."""
    apple_file: str | None = None
    """Apple's `.pt` file, relative to Apple's model folder."""
    folder: str | None = None
    """Folder inside this package that holds the checkpoint."""
    license: str = APPLE_LICENSE
    """Terms of the weights; the code has its own."""

    @property
    def resolution(self) -> int:
        """Side of the square input that `score` and `macs` belong to, in pixels."""
        return self.config["image_size"]

    @property
    def hub_id(self) -> str | None:
        """Hub repository to load from; the transformers format wins, as it needs no conversion."""
        return self.transformers_id or self.timm_id

    @property
    def hub_format(self) -> Literal["transformers", "timm"] | None:
        """Format of `hub_id`."""
        if self.hub_id is None:
            return None
        return "transformers" if self.transformers_id else "timm"

    @property
    def unavailable(self) -> str | None:
        """Why the weights cannot be loaded by name, in one line; None if they can."""
        if self.task != "image-classification":
            return f"{self.task} checkpoints are not loadable yet"
        if self.folder is None and self.hub_id is None:
            return f"no Hub repository has these weights, only Apple's file {self.apple_file}"
        return None

    @property
    def loadable(self) -> bool:
        """Whether the weights can be loaded by name."""
        return self.unavailable is None


# What the rows of a family share.
# fmt: off

_V1_CONFIGS: dict[str, dict[str, Any]] = {
    "xxs": {"hidden_sizes": (64, 80, 96), "neck_hidden_sizes": (16, 16, 24, 48, 64, 80, 320),
            "expand_ratio": 2.0, "hidden_dropout_prob": 0.05},
    "xs": {"hidden_sizes": (96, 120, 144), "neck_hidden_sizes": (16, 32, 48, 64, 80, 96, 384),
           "expand_ratio": 4.0, "hidden_dropout_prob": 0.1},
    "s": {"hidden_sizes": (144, 192, 240), "neck_hidden_sizes": (16, 32, 64, 96, 128, 160, 640),
          "expand_ratio": 4.0, "hidden_dropout_prob": 0.1},
}
_HUB_SIZES = {"xxs": "xx-small", "xs": "x-small", "s": "small"}

_BGR: dict[str, Any] = {"channel_order": "bgr", "interpolation": "bilinear"}
_RGB: dict[str, Any] = {"channel_order": "rgb", "interpolation": "bicubic"}

_IMAGENET: dict[str, Any] = {
    "task": "image-classification", "metric": "top1", "dataset": "imagenet-1k", "num_labels": 1000,
}
_VOC: dict[str, Any] = {
    "task": "semantic-segmentation", "metric": "mean_iou", "dataset": "pascal-voc", "num_labels": 21, "resize": 512,
}
_ADE20K = _VOC | {"dataset": "ade20k", "num_labels": 150}
_COCO: dict[str, Any] = {
    "task": "object-detection", "metric": "map", "dataset": "coco", "num_labels": 80,
    "resize": 320, "keep_aspect": False,
}


def _v1(size: str, params: int, macs: int, score: float, timm_scores: tuple[float, float]) -> Preset:
    return Preset(
        name=f"mobilevit-{size}", model_type="mobilevit", config=_V1_CONFIGS[size] | {"image_size": 256},
        params=params, macs=macs, score=score, timm_scores=timm_scores,
        resize=288, crop=256, **_IMAGENET, **_BGR,
        transformers_id=f"apple/mobilevit-{_HUB_SIZES[size]}", timm_id=f"timm/mobilevit_{size}.cvnets_in1k",
        apple_file=f"cvnets/classification/mobilevit_{size}.pt",
    )


def _v2(
    width: float, params: int, macs: int, score: float, timm_scores: tuple[float, float] | None = None,
    *, size: int = 256, in22k: bool = False, hub: str | None = None,
) -> Preset:
    at_384 = size == 384
    source = "imagenet21k_to_1k" if in22k else "imagenet1k"
    timm_tag = ("cvnets_in22k_ft_in1k" if in22k else "cvnets_in1k") + "_384" * at_384
    return Preset(
        name=f"mobilevitv2-{width}" + "-in22k" * in22k + "-384" * at_384,
        model_type="mobilevitv2", config={"width_multiplier": width, "image_size": size},
        params=params, macs=macs, score=score, timm_scores=timm_scores,
        resize=384 if at_384 else 288, crop=size, **_IMAGENET, **_RGB,
        transformers_id=hub,
        # timm measured just the checkpoints that it also carries.
        timm_id=f"timm/mobilevitv2_{round(100 * width):03d}.{timm_tag}" if timm_scores else None,
        apple_file=f"cvnets-v2/classification/mobilevitv2/{source}/{size}x{size}/mobilevitv2-{width}.pt",
    )


def _deeplabv3(stride: int, channels: int) -> dict[str, Any]:
    rates = {16: (6, 12, 18), 8: (12, 24, 36)}[stride]
    return {"image_size": 512, "output_stride": stride, "aspp_out_channels": channels, "atrous_rates": rates}


def _deeplabv3_v1(size: str, params: int, score: float) -> Preset:
    return Preset(
        name=f"deeplabv3-mobilevit-{size}-voc", model_type="mobilevit", config=_V1_CONFIGS[size] | _deeplabv3(16, 256),
        params=params, score=score, keep_aspect=False, **_VOC, **_BGR,
        transformers_id=f"apple/deeplabv3-mobilevit-{_HUB_SIZES[size]}",
        apple_file=f"cvnets/segmentation/deeplabv3_mobilevit_{size}.pt",
    )


def _segmenter_v2(
    head: str, dataset: str, width: float, params: int, score: float,
    *, macs: int | None = None, hub: str | None = None,
) -> Preset:
    stride, folder, shared = (16, "pascalvoc", _VOC) if dataset == "voc" else (8, "ade20k", _ADE20K)
    head_config = _deeplabv3(stride, 512) if head == "deeplabv3" else {"image_size": 512, "output_stride": stride}
    return Preset(
        name=f"{head}-mobilevitv2-{width}-{dataset}",
        model_type="mobilevitv2", config={"width_multiplier": width, **head_config},
        params=params, macs=macs, score=score, **shared, **_RGB,
        transformers_id=hub,
        apple_file=f"cvnets-v2/segmentation/{folder}/mobilevitv2/{head}-mobilevitv2-{width}.pt",
    )


def _ssdlite_v1(size: str, params: int, macs: int, score: float) -> Preset:
    return Preset(
        name=f"ssdlite-mobilevit-{size}", model_type="mobilevit", config=_V1_CONFIGS[size] | {"image_size": 320},
        params=params, macs=macs, score=score, **_COCO, **_BGR,
        apple_file=f"cvnets/detection/ssd_mobilevit_{size}_320.pt",
    )


def _ssdlite_v2(width: float, params: int, macs: int, score: float) -> Preset:
    return Preset(
        name=f"ssdlite-mobilevitv2-{width}",
        model_type="mobilevitv2", config={"width_multiplier": width, "image_size": 320},
        params=params, macs=macs, score=score, **_COCO, **_RGB,
        apple_file=f"cvnets-v2/detection/mobilevitv2/coco-ssd-mobilevitv2-{width}.pt",
    )


# The table.
_ROWS: tuple[Preset, ...] = (
    # Embedded in the package, trained here.
    Preset(
        name="mobilevit-xxs-tiny-imagenet", model_type="mobilevit", params=1_015_224, macs=49_429_504, score=47.66,
        config=_V1_CONFIGS["xxs"] | {"image_size": 96, "hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0},
        score_source="its model card", license=TINY_IMAGENET_LICENSE, resize=96, crop=96,
        **(_IMAGENET | {"dataset": "tiny-imagenet", "num_labels": 200}), interpolation="bilinear", channel_order="rgb",
        folder="assets/mobilevit-xxs-tiny-imagenet",
    ),
    # Classifiers: parameters, MACs, top-1, (top-1, top-5 by timm).
    _v1("xxs", 1_272_024, 407_364_096, 69.0, (68.936, 88.942)),
    _v1("xs", 2_317_848, 1_025_911_808, 74.7, (74.618, 92.350)),
    _v1("s", 5_578_632, 2_000_831_488, 78.3, (78.298, 94.168)),
    _v2(0.5, 1_370_593, 464_594_944, 70.18, (70.156, 89.930)),
    _v2(0.75, 2_866_009, 1_027_980_288, 75.56, (75.612, 92.754)),
    _v2(1.0, 4_901_841, 1_812_090_880, 78.09, (78.088, 94.170), hub="apple/mobilevitv2-1.0-imagenet1k-256"),
    _v2(1.25, 7_478_089, 2_816_926_720, 79.65, (79.682, 94.844)),
    _v2(1.5, 10_594_753, 4_042_487_808, 80.38, (80.380, 95.050)),
    _v2(1.75, 14_251_833, 5_488_774_144, 80.84, (80.870, 95.280)),
    _v2(2.0, 18_449_329, 7_155_785_728, 81.17, (81.148, 95.380), hub="apple/mobilevitv2-2.0-imagenet1k-256"),
    _v2(0.5, 1_370_593, 1_045_018_624, 72.14, size=384),
    _v2(0.75, 2_866_009, 2_312_475_648, 76.98, size=384),
    _v2(1.0, 4_901_841, 4_076_564_480, 79.68, size=384),
    _v2(1.25, 7_478_089, 6_337_285_120, 80.94, size=384),
    _v2(1.5, 10_594_753, 9_094_637_568, 81.50, size=384),
    _v2(1.75, 14_251_833, 12_348_621_824, 82.04, size=384),
    _v2(2.0, 18_449_329, 16_099_237_888, 82.17, size=384),
    _v2(1.5, 10_594_753, 4_042_487_808, 81.46, (81.466, 95.678), in22k=True),
    _v2(1.75, 14_251_833, 5_488_774_144, 81.94, (81.950, 95.796), in22k=True),
    _v2(2.0, 18_449_329, 7_155_785_728, 82.36, (82.320, 95.942), in22k=True),
    _v2(1.5, 10_594_753, 9_094_637_568, 82.60, (82.606, 96.314), in22k=True, size=384),
    _v2(1.75, 14_251_833, 12_348_621_824, 82.93, (82.920, 96.450), in22k=True, size=384),
    _v2(2.0, 18_449_329, 16_099_237_888, 83.41, (83.430, 96.576), in22k=True, size=384),
    # Segmenters: parameters, mean IoU. The first three are Apple's first release, the fourth a later
    # one with a larger head, trained in RGB.
    _deeplabv3_v1("xxs", 1_854_853, 72.8),
    _deeplabv3_v1("xs", 2_944_069, 77.1),
    _deeplabv3_v1("s", 6_357_941, 79.3),
    Preset(
        name="deeplabv3-mobilevit-s-os8-voc", model_type="mobilevit", config=_V1_CONFIGS["s"] | _deeplabv3(8, 512),
        params=8_537_269, macs=51_056_820_224, score=79.44, **_VOC, channel_order="rgb", interpolation="bilinear",
        apple_file="cvnets-v2/segmentation/pascalvoc/deeplabv3-mobilevitv1.pt",
    ),
    _segmenter_v2("pspnet", "voc", 0.5, 3_550_734, 74.62),
    _segmenter_v2("pspnet", "voc", 0.75, 6_179_974, 77.44),
    _segmenter_v2("pspnet", "voc", 1.0, 9_382_398, 78.92, macs=13_662_158_848),
    _segmenter_v2("pspnet", "voc", 1.25, 13_158_006, 79.40),
    _segmenter_v2("pspnet", "voc", 1.5, 17_506_798, 79.93),
    _segmenter_v2("deeplabv3", "voc", 0.5, 6_242_318, 75.07),
    _segmenter_v2(
        "deeplabv3", "voc", 1.0, 13_318_654, 78.94,
        macs=17_685_676_032, hub="apple/mobilevitv2-1.0-voc-deeplabv3",
    ),
    _segmenter_v2("deeplabv3", "voc", 1.25, 17_667_446, 79.68),
    _segmenter_v2("deeplabv3", "voc", 1.5, 22_556_654, 80.30, hub="apple/mobilevitv2-1.5-voc-deeplabv3"),
    _segmenter_v2("pspnet", "ade20k", 0.5, 3_616_911, 31.77),
    _segmenter_v2("pspnet", "ade20k", 0.75, 6_246_151, 35.22),
    _segmenter_v2("pspnet", "ade20k", 1.0, 9_448_575, 36.57, macs=39_901_069_312),
    _segmenter_v2("pspnet", "ade20k", 1.25, 13_224_183, 38.76),
    _segmenter_v2("pspnet", "ade20k", 1.5, 17_572_975, 38.74),
    _segmenter_v2("pspnet", "ade20k", 1.75, 22_494_951, 39.82),
    _segmenter_v2("deeplabv3", "ade20k", 0.5, 6_308_495, 31.93),
    _segmenter_v2("deeplabv3", "ade20k", 0.75, 9_576_455, 34.70),
    _segmenter_v2("deeplabv3", "ade20k", 1.0, 13_384_831, 37.06, macs=56_004_182_016),
    _segmenter_v2("deeplabv3", "ade20k", 1.25, 17_733_623, 38.42),
    _segmenter_v2("deeplabv3", "ade20k", 1.5, 22_622_831, 38.91),
    _segmenter_v2("deeplabv3", "ade20k", 1.75, 28_052_455, 39.53),
    _segmenter_v2("deeplabv3", "ade20k", 2.0, 34_022_495, 40.94),
    # Detectors: parameters, MACs, mAP.
    _ssdlite_v1("xxs", 1_755_050, 842_026_960, 19.9),
    _ssdlite_v1("xs", 2_742_042, 1_845_432_160, 24.8),
    _ssdlite_v1("s", 5_738_826, 3_426_732_960, 27.9),
    _ssdlite_v2(0.5, 2_035_395, 890_725_760, 21.24),
    _ssdlite_v2(0.75, 3_584_955, 1_801_154_560, 24.57),
    _ssdlite_v2(1.0, 5_608_883, 3_049_912_960, 26.47),
    _ssdlite_v2(1.25, 8_173_227, 4_643_554_560, 27.85),
    _ssdlite_v2(1.5, 11_277_987, 6_582_079_360, 28.83),
    _ssdlite_v2(1.75, 14_923_163, 8_865_487_360, 29.52),
    _ssdlite_v2(2.0, 19_108_755, 11_493_778_560, 30.21),
)

# fmt: on
_PRESETS: dict[str, Preset] = {row.name: row for row in _ROWS}


def _key(name: str) -> str:
    """One spelling for names that differ in case or in `_` against `-`."""
    return name.strip().lower().replace("_", "-")


def _other_spellings(preset: Preset) -> Iterator[str]:
    """Hub ids with and without the owner, and the names that timm used in its releases."""
    for repo_id in (preset.transformers_id, preset.timm_id):
        if repo_id:
            yield from (repo_id, repo_id.split("/")[1])
    if preset.timm_id:
        architecture, tag = preset.timm_id.removeprefix("timm/").split(".")
        if tag == "cvnets_in1k":
            yield architecture
        else:
            yield architecture + "_384" * tag.endswith("_384") + "_in22ft1k"


def _find_aliases() -> dict[str, Preset]:
    aliases = {_key(spelling): row for row in _ROWS for spelling in _other_spellings(row)} | _PRESETS
    # Apple names the files of two resolutions or data sets alike; such a stem says too little.
    stems = {row.name: _key(Path(row.apple_file).stem) for row in _ROWS if row.apple_file}
    counts = Counter(stems.values())
    return {stem: _PRESETS[name] for name, stem in stems.items() if counts[stem] == 1} | aliases


_ALIASES = _find_aliases()


def find_preset(name: str) -> Preset | None:
    """Returns the record of a published checkpoint, or None if `name` is not one; needs no network.

    Args:
        name: A short name (`"mobilevit-s"`), a Hub id (`"apple/mobilevit-small"`,
            `"timm/mobilevit_s.cvnets_in1k"`), timm's name (`"mobilevitv2_100"`) or the stem of
            Apple's file (`"ssd_mobilevit_s_320"`), in any case and with `_` or `-`.
    """
    return _ALIASES.get(_key(name)) if isinstance(name, str) else None


def get_preset(name: str) -> Preset:
    """Returns the record of a published checkpoint; needs no network.

    Args:
        name: As for `find_preset`.

    Raises:
        NotFoundError: No checkpoint has this name; the message has the nearest ones.
    """
    preset = find_preset(name)
    if preset is None:
        nearest = _nearest_names(name) if isinstance(name, str) else []
        hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        raise NotFoundError(
            f"Unknown checkpoint {name!r}.{hint} "
            "Run \"mobilevit-hub list\" or pass a Hub id such as 'apple/mobilevit-small' or a folder.",
            field="name",
            found=name,
            expected=nearest,
        )
    return preset


def check_name(name: str) -> None:
    """Refuses, before anything heavy is imported, a name that can be neither alias nor path nor Hub id.

    Args:
        name: As for `hub.find.find_checkpoint`, which judges all other names.

    Raises:
        NotFoundError: As `get_preset`.
    """
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        return
    with suppress(OSError, ValueError):  # cannot be a path: too long, or with a NUL byte
        if Path(name).exists():
            return
    get_preset(name)


def _nearest_names(name: str) -> list[str]:
    """At most two short names that begin with `name` or look like it."""
    key = _key(name)
    longer = sorted((known for known in _PRESETS if key and known.startswith(key)), key=len)
    alike = difflib.get_close_matches(key, _ALIASES, n=8, cutoff=0.7)
    return list(dict.fromkeys(longer + [_ALIASES[spelling].name for spelling in alike]))[:2]


def list_presets(task: str | None = None) -> list[Preset]:
    """Returns the published checkpoints, loadable or not, the embedded one first.

    Args:
        task: One of `PRESET_TASKS`; default: all.

    Raises:
        InputError: There is no such task.
    """
    if task is not None and task not in PRESET_TASKS:
        words = ", ".join(PRESET_TASKS)
        raise InputError(
            f"Unknown task {task!r}; expected one of {words}.", field="task", found=task, expected=PRESET_TASKS
        )
    return [row for row in _ROWS if task in (None, row.task)]
