"""What a training run is given in either framework, and where it is resumed from."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.labelled import LabelledImages
from ..errors import InputError, MobileViTHubWarning
from ..files import write_json
from ..images.processor import MobileViTImageProcessor
from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """What a framework's `fit` is given."""

    recipe: Recipe
    images: LabelledImages
    """The photos to train on."""
    held_out: LabelledImages
    """The photos to measure on."""
    processor: MobileViTImageProcessor
    """What prepares the photos to measure on; interpolation and channel order hold for all photos."""
    make: Callable[[], Any]
    """Makes the starting network."""
    checkpoints: Path
    resume: bool
    settings: dict[str, Any]
    workers: int
    save_steps: int
    progress: bool
    is_main_process: bool
    """Whether this is the process of a distributed run that writes the files."""

    def build(self) -> Any:
        """The starting network, which remembers the size it is meant for."""
        network = self.make()
        network.config.image_size = self.recipe.eval_sizes[1]
        return network

    def start(self) -> None:
        """Notes in the folder what the run was started with; called once, when all processes have looked into it."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.checkpoints / "settings.json", self.settings)

    def warn_of_no_checkpoint(self) -> None:
        """Says that there is nothing to resume from."""
        warnings.warn(
            f"{self.checkpoints} holds no complete checkpoint; training starts at the beginning.",
            MobileViTHubWarning,
            stacklevel=4,
        )

    def steps_per_epoch(self, processes: int) -> int:
        """Steps of one pass over the photos in `processes` processes or devices; a rest is left out.

        Raises:
            InputError: The photos are fewer than one batch for each.
        """
        photos, batch = len(self.images), self.recipe.batch_size
        if processes > 1 and photos < batch * processes:
            raise InputError(
                f"{photos} training photos are fewer than one batch of {batch} for each of {processes} "
                "processes; choose a smaller batch size.",
                field="batch_size",
            )
        return max(1, photos // batch // processes)


def is_main_process(framework: str) -> bool:
    """Whether this is the process of a distributed run that speaks and writes.

    In PyTorch rank 0, in Keras the chief that `TF_CONFIG` names, else its first worker.

    Raises:
        InputError: `TF_CONFIG` is not the JSON that TensorFlow asks for.
    """
    if framework == "pt":
        return os.environ.get("RANK", "0") == "0"
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster, task = (dict(json.loads(text).get(part, {})) for part in ("cluster", "task"))
        chief = "chief" if "chief" in cluster else "worker"
        return (task.get("type", chief), int(task.get("index", 0))) == (chief, 0)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"The environment variable TF_CONFIG is {text!r}; expected JSON such as "
            '{"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}.',
            field="TF_CONFIG",
            found=text,
        ) from error


def last_complete_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint that was written to its end, and its state; `trainer_state.json` is written last."""
    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):  # there is none, or it is cut short
            return path, json.loads((path / "trainer_state.json").read_bytes())
    return None, {}
