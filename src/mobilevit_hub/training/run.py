"""Training a classifier in either framework: checks, photos, starting network, and the folder that is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..choices import check_framework
from ..data.labelled import LabelledImages
from ..data.opening import open_images, open_split
from ..errors import InputError, require
from ..files import write_json
from ..hub.find import find_checkpoint
from ..hub.presets import find_preset
from ..images.processor import processor_for, processor_of
from ..json_files import check_same_settings
from ..models import from_pretrained, model_class, trainer
from ..network.configuration import CONFIG_CLASSES, load_config
from ..recipes.recipe import Recipe, get_recipe
from ..recipes.run import Run, is_main_process
from .report import draw_learning_curve, training_card

# Packages beside the framework's own that training needs, and the extra that has them.
PACKAGES = {"pt": {"torch": "torch", "accelerate": "torch"}, "tf": {"keras": "tf", "tensorflow": "tf"}}


def train(
    data: str | Path,
    output: str | Path,
    *,
    model: str = "mobilevit-xxs",
    framework: str = "pt",
    from_scratch: bool = False,
    recipe: Recipe | None = None,
    validation: str | Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    workers: int = 0,
    save_steps: int = 500,
    progress: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Trains a classifier and writes it as a folder that every `from_pretrained` opens.

    Args:
        data: Labelled photos: folder of class folders, parquet, or Hub id (see `data.open_images`).
        output: Folder to write: weights, config, processor, card, `training_log.json`,
            `learning_curve.png`; `checkpoints/` below it is what `resume` continues from.
        model: Checkpoint to start from, or whose architecture to use: alias, folder or Hub id.
        framework: `"pt"` for PyTorch, `"tf"` for Keras.
        from_scratch: Start from random weights instead of the checkpoint's.
        recipe: How to train; default: the `"finetune"` recipe.
        validation: Labelled photos to evaluate on; default: the validation split of `data`, or a tenth of each
            class, held out, when it has none.
        config: Config fields to change, e.g. `{"output_stride": 16}`.
        resume: Continue the last complete checkpoint of `output`.
        workers: Processes (PyTorch) or threads (Keras) that prepare photos beside the one that trains; 0 is best
            when the decoded photos fit into memory.
        save_steps: Largest number of steps between two checkpoints; small data is saved about once an epoch.
        progress: Whether to show progress bars.
        command: The command line, for the card.

    Returns:
        The content of `training_log.json`: settings, history, `top1`, `top5`, `count`, seconds.

    Raises:
        InputError: The data cannot be trained on, the output holds an earlier run, or an option is wrong.
        NotFoundError: There is no such data, split or model.
        ImageError: A photo cannot be read; the message names it.
    """
    check_framework(framework)
    for package, extra in {**PACKAGES[framework], "datasets": "train", "matplotlib": "train"}.items():
        require(package, extra, "Training")
    training = trainer(framework)
    if framework == "tf":
        training.check()
    for name, value, least in (("workers", workers, 0), ("save_steps", save_steps, 1)):
        if value < least:
            raise InputError(f"{name} is {value!r}; expected at least {least}.", field=name, found=value)
    recipe, output, config = recipe or get_recipe(), Path(output), config or {}
    settings = {
        "data": str(Path(data)),
        "validation": None if validation is None else str(Path(validation)),
        "model": str(model),
        "framework": framework,
        "from_scratch": from_scratch,
        "config": config,
        **asdict(recipe),
    }
    _check_output(output / "checkpoints", resume, settings)
    images, held_out = _open_photos(data, validation, recipe.seed)
    make, interpolation, channel_order = starting_network(
        str(model), images.label_names, framework=framework, from_scratch=from_scratch, recipe=recipe, changes=config
    )
    is_main = is_main_process(framework)
    progress = progress and is_main
    for photos in (images, held_out):
        photos.keep_in_memory(progress)
    run = Run(
        recipe=recipe,
        images=images,
        held_out=held_out,
        processor=processor_for(*recipe.eval_sizes, interpolation, channel_order),
        make=make,
        checkpoints=output / "checkpoints",
        resume=resume,
        settings=settings,
        workers=workers,
        save_steps=save_steps,
        progress=progress,
        is_main_process=is_main,
    )
    network, results = training.fit(run)
    log = {
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "framework": framework,
        "from_scratch": from_scratch,
        "data": Path(data).resolve().name if Path(data).exists() else str(data),
        "count": len(held_out),
        "train_count": len(images),
        "recipe": asdict(recipe),
        "config": config,
        "command": command,
        **results,
    }
    if network is not None:  # one process of a distributed run writes
        network.save_pretrained(output, processor=run.processor, card=training_card(log, network.config))
        write_json(output / "training_log.json", log)
        draw_learning_curve(log["history"], output / "learning_curve.png")
    return log


def _check_output(checkpoints: Path, resume: bool, settings: dict[str, Any]) -> None:
    """Refuses to write over an earlier run, or to resume one with other settings than it was started with."""
    file = checkpoints / "settings.json"
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise InputError(
            f"{checkpoints} holds an earlier run; continue it with --resume or choose another output folder.",
            path=checkpoints,
        )
    if resume and file.exists():
        check_same_settings(file, settings)


def _open_photos(data: str | Path, validation: str | Path | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The photos to train on and those to measure on."""
    if validation is None:
        images, held_out = open_split(data, "train", seed), open_split(data, "validation", seed)
    else:
        images, held_out = open_images(data, "train"), open_images(validation, "validation")
    if held_out.label_names != images.label_names:
        raise InputError(
            f"Training and validation photos have different classes: {images.label_names[:3]}… and "
            f"{held_out.label_names[:3]}….",
            field="validation",
        )
    return images, held_out


def starting_network(
    model: str,
    label_names: list[str],
    *,
    framework: str,
    from_scratch: bool,
    recipe: Recipe,
    changes: dict[str, Any],
) -> tuple[Callable[[], Any], str, str]:
    """Finds what a run starts from.

    Args:
        model: Alias, folder or Hub id.
        label_names: The classes, which the network's classifier gets.
        framework: `"pt"` or `"tf"`.
        from_scratch: Whether to take the architecture only.
        recipe: Dropout.
        changes: Config fields to change.

    Returns:
        A function that makes the network, and interpolation and channel order of its images.

    Raises:
        InputError: The name is a preset of another task.
        NotFoundError: There is no such model.
    """
    labels = dict(enumerate(label_names))
    preset = None if "/" in model and Path(model).is_dir() else find_preset(model)
    if preset is not None and preset.task != "image-classification":
        raise InputError(
            f"{preset.name!r} is for {preset.task}; expected the name of a classifier, such as 'mobilevit-s'.",
            field="model",
            found=model,
        )
    # A preset says what is needed here without any file of it.
    checkpoint = find_checkpoint(model) if preset is None else None
    version = preset.model_type if checkpoint is None else load_config(checkpoint).model_type  # type: ignore[union-attr]
    if recipe.dropout >= 0:
        # Version 2 has no dropout before its classifier.
        names = ["hidden_dropout_prob"] + ["classifier_dropout_prob"] * (version == "mobilevit")
        changes = dict.fromkeys(names, recipe.dropout) | changes
    if not from_scratch:
        found = checkpoint or find_checkpoint(model)
        processor = processor_of(found)
        make = partial(from_pretrained, found, framework=framework, id2label=labels, **changes)
        return make, processor.interpolation, processor.channel_order
    if checkpoint is None:
        config = CONFIG_CLASSES[version].from_preset(model, id2label=labels, **changes)  # type: ignore[attr-defined]
    else:
        config = load_config(checkpoint, id2label=labels, **changes)
    filter_of_version = "bilinear" if version == "mobilevit" else "bicubic"
    # A network from scratch takes photos as they are: nothing to inherit from OpenCV's BGR.
    return (
        partial(model_class(version, framework), config),
        preset.interpolation if preset else filter_of_version,
        "rgb",
    )
