"""Which published network a file of weights is: told from the names and shapes of its tensors alone."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from mobilevit_hub.checkpoints.fitting import guess_family
from mobilevit_hub.errors import CheckpointError, listed
from mobilevit_hub.hub.presets import Preset, get_preset, list_presets
from mobilevit_hub.network.configuration import CONFIG_CLASSES
from mobilevit_hub.network.names import SCHEMES, renames
from mobilevit_hub.network.structure import COUNTER, Head, parts, tensor_shapes

Shapes = dict[str, tuple[int, ...]]
HEAD_TITLES = {
    "classifier": "a classifier",
    "deeplabv3": "a DeepLabv3 segmentation network",
    "pspnet": "a PSPNet segmentation network",
    "ssdlite": "an SSDLite detector",
}
# What stands in the names of each head in any scheme.
_HEAD_SIGNS: tuple[tuple[str, Head], ...] = (
    ("aspp.", "deeplabv3"),
    ("psp_layer.", "pspnet"),
    ("segmentation_head.psp.", "pspnet"),
    ("ssd_heads.", "ssdlite"),
    ("detection_head.", "ssdlite"),
    ("classifier.", "classifier"),
    ("head.fc.", "classifier"),
)


class Recognised(NamedTuple):
    """What a file holds."""

    scheme: str
    """One of `names.SCHEMES`, or `"transformers"`."""
    backbone: str
    """Alias of the published classifier with these widths and the smallest images; the version, where a config
    describes other widths."""
    head: Head | None
    num_labels: int | None
    """Rows of the head, without the background of a detector; None without a head."""

    @property
    def title(self) -> str:
        """In words: `"a DeepLabv3 segmentation network (mobilevit-s, 21 labels)"`."""
        head = HEAD_TITLES[self.head] if self.head else "a network without a head"
        return f"{head} ({self.backbone}" + (f", {self.num_labels} labels)" if self.head else ")")


def recognise(shapes: Shapes, path: Any) -> Recognised:
    """Tells scheme, version, size and head from tensor names and shapes.

    Args:
        shapes: Shape of each tensor in the file, by its name there.
        path: The file, for messages.

    Raises:
        CheckpointError: It is no MobileViT in a naming that is known, or not of a published size.
    """
    encoder = {name.removeprefix("encoder.") if "encoder.conv_1." in name or "encoder.layer_" in name else name: shape
               for name, shape in shapes.items()}  # fmt: skip
    best, named, fitting = None, 0.0, 0.0
    for scheme in ("cvnets", "timm", "transformers"):
        for backbone in backbones():
            wanted = {n: s for n, s in _encoder_shapes(scheme, backbone).items() if not n.endswith(COUNTER)}
            share_named = sum(name in encoder for name in wanted) / len(wanted)
            share = sum(encoder.get(name) == shape for name, shape in wanted.items()) / len(wanted)
            if (share_named, share) > (named, fitting):
                best, named, fitting = (scheme, backbone), share_named, share
    if best is None or named < 0.5:
        raise CheckpointError(
            f"{path}: these are not the tensors of a MobileViT as ml-cvnets, timm or transformers name them: "
            f"{listed(shapes) or 'there are none'}.{guess_family(list(shapes))}",
            path=path,
            unexpected=sorted(shapes),
        )
    scheme, backbone = best
    if fitting < 0.5:
        version = get_preset(backbone).model_type
        raise CheckpointError(
            f"{path}: the names are those of {version}, but the shapes of no published size ({fitting:.0%} fit "
            f"{backbone}). For a network of your own, pass its folder or config.json as model (--model).",
            path=path,
        )
    head = head_in(shapes)
    if head == "deeplabv3" and any(name.startswith("seg_head.classifier.classifier.") for name in shapes):
        scheme = "cvnets-0.1"
    return Recognised(scheme, backbone, head, _label_count(shapes, scheme, backbone, head))


def scheme_in(shapes: Shapes) -> str:
    """The scheme of tensors that belong to a config: `"cvnets"`, `"timm"` or `"transformers"`."""
    signs = {"cvnets": "conv_1.block.conv.weight", "timm": "stem.conv.weight"}
    return next((scheme for scheme, name in signs.items() if name in shapes), "transformers")


def head_in(shapes: Shapes) -> Head | None:
    """The head that tensors of any scheme belong to; None where there is only an encoder."""
    return next((head for sign, head in _HEAD_SIGNS if any(sign in name for name in shapes)), None)


def twins_of(preset: Preset) -> list[Preset]:
    """The published classifiers whose tensors have the same names and shapes, in the order of the table."""
    own = widths_of(preset)
    return [row for row in list_presets("image-classification") if not row.folder and widths_of(row) == own]


@cache
def backbones() -> tuple[str, ...]:
    """Aliases of the ten published networks, one for each version and size."""
    first: dict[str, str] = {}
    for row in list_presets("image-classification"):
        if not row.folder:
            first.setdefault(repr(widths_of(row)), row.name)
    return tuple(first.values())


def backbone_of(config: Any) -> str | None:
    """Alias of the published network that a config describes, but for its labels; None for others."""
    shapes = tensor_shapes(config, None)
    return next((name for name in backbones() if _encoder_shapes("transformers", name) == shapes), None)


def config_of(preset: Preset, **changes: Any) -> Any:
    """The config of a published network, with 1000 nameless labels unless `changes` say otherwise."""
    return CONFIG_CLASSES[preset.model_type](**{"num_labels": 1000, **preset.config, **changes})  # type: ignore[arg-type]


def widths_of(preset: Preset) -> tuple[Any, ...]:
    """What tells the networks of the table apart: equal for those whose encoders have equal tensors."""
    return preset.model_type, preset.config.get("width_multiplier"), preset.config.get("neck_hidden_sizes")


@cache
def _encoder_shapes(scheme: str, backbone: str) -> Shapes:
    """Shape of the encoder's tensors by the names of a scheme."""
    config = config_of(get_preset(backbone))
    if scheme == "transformers":
        return tensor_shapes(config, None)
    return {rename.theirs: rename.shape for rename in renames(config, scheme, None)}


def _label_count(shapes: Shapes, scheme: str, backbone: str, head: Head | None) -> int | None:
    """Rows of the last layer of a head."""
    if head is None:
        return None
    config = config_of(get_preset(backbone))
    last = list(parts(config, head))[-1].name
    if scheme == "transformers":
        name = f"{last}.convolution.weight" if head != "classifier" else f"{last}.weight"
    else:
        about = SCHEMES[scheme]
        before = "" if head == "classifier" else about.single_conv
        name = f"{about.tables[config.model_type][last]}.{before}weight"
    shape = shapes.get(name)
    rows = shape[0] if shape else 0  # missing, or a single number: the strict reader will say so
    return max(0, rows // 4 - 5) if head == "ssdlite" else rows
