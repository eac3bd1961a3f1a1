"""Training recipes as data: what both frameworks' training commands read.

Sources of the named recipes: architecture papers (arXiv 2110.02178, 2206.02680) and the settings that
Apple published with the weights; batch size and epochs are the reader's to scale to the machine.

What the named recipes leave out or simplify:

- "mobilevit": Apple's sampler changes image size and batch size from batch to batch (160 to 320
  pixels); here the size is fixed or follows `size_schedule`, and the batch size is constant.
- Both: the warm-up starts at 0, Apple's at 2e-4 (version 1) and 1e-6 (version 2); the cosine goes on
  from there to the end, step by step, while Apple's counts whole epochs from the first one.
- "mobilevitv2": learning rate and weight decay are those of width 1.0 for every width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import ConfigError, InputError
from ..images.sizes import evaluation_resize
from ..rules import Rule, fail, flag, integer, number


def _option(default: Any, text: str) -> Any:
    """A recipe field with the help text of its command-line flag."""
    return field(default=default, metadata={"help": text})


def parse_size_schedule(text: str) -> list[int]:
    """Turns `"64:8,96:2,128:1"` (pixels:epochs) into one image size per epoch.

    Raises:
        InputError: The text is not of that form, or a size is below 32 or above 1024 pixels.
    """
    sizes: list[int] = []
    for part in text.split(","):
        size, _, epochs = part.strip().partition(":")
        numbers = [int(number) for number in (size, epochs or "1") if number.isdecimal() and len(number) < 6]
        if len(numbers) < 2 or not 32 <= numbers[0] <= 1024 or numbers[1] < 1:
            raise InputError(
                f"Size schedule {text!r}: {part.strip()!r} is not pixels:epochs with 32 to 1024 pixels, such as "
                "'64:8,128:2'.",
                field="size_schedule",
                found=text,
            )
        sizes += [numbers[0]] * numbers[1]
    return sizes


def _dropout(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not (0 <= value < 1 or value == -1):
        raise fail(name, value, "0 or more and below 1, or -1")
    return value


def _schedule(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise fail(name, value, "a text such as '64:8,128:2', or '' for none")
    return value


RULES: dict[str, Rule] = {
    "epochs": integer(1, 10_000),
    "batch_size": integer(1, 65_536),
    "image_size": integer(32, 1024),
    "size_schedule": _schedule,
    "eval_resize": integer(0, 2048),
    "learning_rate": number(1e-8, 10),
    "final_learning_rate": number(0, 10),
    "muon_learning_rate": number(0, 10),
    "warmup_epochs": number(0, 10_000),
    "weight_decay": number(0, 10),
    "decay_all": flag,
    "label_smoothing": number(0, 0.99),
    "ema_momentum": number(0, 0.99),
    "clip_norm": number(0, 1e6),
    "crop_area": number(0.001, 1),
    "flip": flag,
    "rand_augment": integer(0, 14),
    "random_erase": number(0, 1),
    "mixup": number(0, 100),
    "cutmix": number(0, 100),
    "dropout": _dropout,
    "bf16": flag,
    "freeze_backbone": flag,
    "seed": integer(0, 2**31 - 1),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a training run, apart from the data and the starting weights."""

    epochs: int = _option(10, "passes over the training photos")
    batch_size: int = _option(64, "photos per step and process")
    image_size: int = _option(256, "side of the training images in pixels")
    size_schedule: str = _option(
        "", "image size by epoch as pixels:epochs, e.g. 64:8,128:2; replaces --epochs and --image-size"
    )
    eval_resize: int = _option(0, "short side before the evaluation crop; 0: image size × 1.125 (384: × 1), as Apple")
    learning_rate: float = _option(1e-3, "peak learning rate")
    final_learning_rate: float = _option(0.0, "learning rate that the cosine ends with")
    muon_learning_rate: float = _option(0.0, "peak learning rate of Muon for weight matrices; 0: AdamW for all")
    warmup_epochs: float = _option(0.5, "length of the linear warm-up in epochs")
    weight_decay: float = _option(0.01, "decoupled weight decay of AdamW")
    decay_all: bool = _option(False, "decay norms and biases as well (version 1 recipe)")
    label_smoothing: float = _option(0.1, "label smoothing of the training loss")
    ema_momentum: float = _option(0.0, "share of the new weights in the moving average; 0: off (papers: 0.0005)")
    clip_norm: float = _option(10.0, "largest global gradient norm; 0: no clipping")
    crop_area: float = _option(0.25, "smallest share of the photo's area that a random crop keeps")
    flip: bool = _option(True, "mirror half of the training photos")
    rand_augment: int = _option(0, "number of RandAugment operations per photo (version 2 recipe: 2)")
    random_erase: float = _option(0.0, "share of the photos that lose a random rectangle (version 2 recipe: 0.25)")
    mixup: float = _option(0.0, "alpha of MixUp; 0: off (version 2 recipe: 0.2)")
    cutmix: float = _option(0.0, "alpha of CutMix; 0: off (version 2 recipe: 1.0)")
    dropout: float = _option(-1.0, "dropout in the network, for version 1 also before the classifier; -1: checkpoint's")
    bf16: bool = _option(False, "compute in bfloat16 where it is safe")
    freeze_backbone: bool = _option(False, "train the classifier only")
    seed: int = _option(0, "seed of order, crops and new weights")

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            rule(name, getattr(self, name))
        if 0 < self.eval_resize < self.sizes[-1]:
            raise ConfigError(
                f"Recipe field 'eval_resize' is {self.eval_resize!r}, but the evaluation crop is {self.sizes[-1]}; "
                "expected at least as much, or 0.",
                field="eval_resize",
            )
        if len(self.sizes) < self.warmup_epochs:
            raise ConfigError(
                f"warmup_epochs is {self.warmup_epochs!r}, longer than the run of {len(self.sizes)} epochs.",
                field="warmup_epochs",
                found=self.warmup_epochs,
                expected=len(self.sizes),
            )

    @property
    def sizes(self) -> list[int]:
        """Image side of each epoch, in pixels."""
        if self.size_schedule:
            return parse_size_schedule(self.size_schedule)
        return parse_size_schedule(f"{self.image_size}:{self.epochs}")

    @property
    def eval_sizes(self) -> tuple[int, int]:
        """Short side and crop of the evaluation images, in pixels."""
        crop = self.sizes[-1]
        return self.eval_resize or evaluation_resize(crop), crop


RECIPES: dict[str, Recipe] = {
    "finetune": Recipe(),
    "mobilevit": Recipe(
        epochs=300,
        batch_size=128,
        learning_rate=2e-3,
        final_learning_rate=2e-4,
        warmup_epochs=2.4,
        weight_decay=0.01,
        decay_all=True,
        ema_momentum=5e-4,
        clip_norm=0.0,
        crop_area=0.08,
    ),
    "mobilevitv2": Recipe(
        epochs=300,
        batch_size=128,
        learning_rate=7.5e-3,
        final_learning_rate=7.5e-4,
        warmup_epochs=16.0,
        weight_decay=0.013,
        ema_momentum=5e-4,
        crop_area=0.08,
        rand_augment=2,
        random_erase=0.25,
        mixup=0.2,
        cutmix=1.0,
    ),
}


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon updates a weight: matrices and full convolutions, without stem, depthwise and classifier.

    Args:
        name: Its name in a checkpoint.
        shape: Its shape there.
    """
    depthwise = len(shape) == 4 and shape[1] == 1
    return len(shape) >= 2 and not depthwise and "conv_stem" not in name and "classifier" not in name


def get_recipe(name: str = "finetune", **changes: Any) -> Recipe:
    """Returns a named recipe with some fields changed.

    Raises:
        InputError: No recipe or field of that name, or a size schedule beside the epochs or image size it replaces.
        ConfigError: A value is out of range.
    """
    if name not in RECIPES:
        raise InputError(f"Unknown recipe {name!r}; expected one of {', '.join(RECIPES)}.", field="recipe", found=name)
    unknown = set(changes) - {f.name for f in fields(Recipe)}
    if unknown:
        raise InputError(f"A recipe has no field {sorted(unknown)[0]!r}.", field=sorted(unknown)[0])
    replaced = [name for name in ("epochs", "image_size") if name in changes]
    if changes.get("size_schedule") and replaced:
        raise InputError(
            f"size_schedule is {changes['size_schedule']!r} and {replaced[0]} is {changes[replaced[0]]!r}; give one of "
            "the two, the schedule says sizes and epochs.",
            field="size_schedule",
            found=changes["size_schedule"],
        )
    return replace(RECIPES[name], **changes)
