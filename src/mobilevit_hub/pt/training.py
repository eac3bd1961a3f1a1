"""Training: from scratch or from a checkpoint, resumable, on one or many devices."""

from __future__ import annotations

import json
import os
import platform
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from .. import runtimes
from ..checkpoints import find_checkpoint, load_config
from ..configuration import CONFIG_CLASSES
from ..data import SizedBatches, open_images
from ..errors import InputError, MobileViTHubWarning, require
from ..files import json_bytes
from ..image_processing import processor_for
from ..json_files import read_json
from ..presets import find_preset
from ..recipes import Recipe, get_recipe
from ..reports import draw_learning_curve, training_card, write_json
from .trainer import EvaluationImages, RecipeTrainer, TrainingImages, five_best, top_scores

# Share of each class that is measured on when the data has no validation part.
HELD_OUT = 0.1


def last_complete_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint that was written to its end, and its state; `trainer_state.json` is written last."""
    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):  # there is none, or it is cut short
            return path, json.loads((path / "trainer_state.json").read_bytes())
    return None, {}


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuses to resume with other settings than the run was started with."""
    earlier = read_json(file)
    now = json.loads(json_bytes(settings))
    changed = sorted(name for name in now if now[name] != earlier.get(name))
    if changed:
        was = ", ".join(f"{name}={earlier.get(name)!r}" for name in changed[:5])
        raise InputError(
            f"The run in {file.parent} was started with {was}; resume it with the same options, or choose another "
            "output folder.",
            path=file,
            field=changed[0],
        )


def train(
    data: str | Path,
    output: str | Path,
    *,
    model: str = "mobilevit-xxs",
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
        from_scratch: Start from random weights instead of the checkpoint's.
        recipe: How to train; default: the `"finetune"` recipe.
        validation: Labelled photos to evaluate on; default: the validation split of `data`, or a tenth of each
            class, held out, when it has none.
        config: Config fields to change, e.g. `{"output_stride": 16}`.
        resume: Continue the last complete checkpoint of `output`.
        workers: Processes that prepare photos; 0 is best when the decoded photos fit into memory.
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
    for package in ("datasets", "accelerate"):
        require(package, "train", "Training")
    for name, value, least in (("workers", workers, 0), ("save_steps", save_steps, 1)):
        if value < least:
            raise InputError(f"{name} is {value!r}; expected at least {least}.", field=name, found=value)
    recipe, output, config = recipe or get_recipe(), Path(output), config or {}
    checkpoints = output / "checkpoints"
    settings_file = checkpoints / "settings.json"
    settings = {
        "data": str(Path(data)),
        "validation": None if validation is None else str(Path(validation)),
        "model": str(model),
        "from_scratch": from_scratch,
        "config": config,
        **asdict(recipe),
    }
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise InputError(
            f"{checkpoints} holds an earlier run; continue it with --resume or choose another output folder.",
            path=checkpoints,
        )
    last, state = last_complete_checkpoint(checkpoints) if resume else (None, {})
    if last is not None and settings_file.exists():
        _check_settings(settings_file, settings)
    if resume and last is None:
        warnings.warn(
            f"{checkpoints} holds no complete checkpoint; training starts at the beginning.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    progress = progress and os.environ.get("LOCAL_RANK", "0") == "0"
    images = open_images(data, "train")
    held_out = open_images(validation or data, "validation")
    if validation is None and not held_out.is_split:
        images, held_out = images.hold_out(HELD_OUT, recipe.seed)
        warnings.warn(
            f"{data} has no validation photos; {len(held_out)} of its photos, {HELD_OUT:.0%} of each class, are held "
            "out to measure on.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    if held_out.label_names != images.label_names:
        raise InputError(
            f"Training and validation photos have different classes: {images.label_names[:3]}… and "
            f"{held_out.label_names[:3]}….",
            field="validation",
        )
    torch.manual_seed(recipe.seed)
    network, start_processor = _build(str(model), from_scratch, images.label_names, recipe, config)
    resize, crop = recipe.eval_sizes
    processor = processor_for(resize, crop, start_processor["interpolation"], start_processor["channel_order"])
    network.config.image_size = crop
    for photos in (images, held_out):
        photos.keep_in_memory(progress)

    accelerated = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` and `torchrun` set it
    steps_per_epoch = len(SizedBatches(len(images), recipe.batch_size, recipe.sizes)) // processes
    if steps_per_epoch == 0:
        raise InputError(
            f"{len(images)} training photos are fewer than one batch of {recipe.batch_size} for each of {processes} "
            "processes; choose a smaller batch size.",
            field="batch_size",
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=len(recipe.sizes),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=max(64, recipe.batch_size),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_learning_rate / recipe.learning_rate},
        warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
        max_grad_norm=recipe.clip_norm,
        bf16=recipe.bf16,
        use_cpu=not accelerated,
        eval_strategy="epoch",
        save_strategy="steps",
        # Small data: about once an epoch, or a short run would have nothing to resume from.
        save_steps=min(save_steps, max(20, steps_per_epoch)),
        save_total_limit=2,
        logging_steps=max(1, min(50, steps_per_epoch)),
        dataloader_num_workers=workers,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=recipe.seed,
        disable_tqdm=not progress,
        ddp_find_unused_parameters=False,
        report_to=[],
    )
    trainer = RecipeTrainer(
        recipe,
        len(images.label_names),
        seconds_before=(state.get("log_history") or [{}])[-1].get("seconds", 0),
        model=network,
        args=arguments,
        train_dataset=TrainingImages(
            images, recipe, start_processor["channel_order"], start_processor["interpolation"]
        ),
        eval_dataset=EvaluationImages(held_out, processor),
        compute_metrics=top_scores,
        preprocess_logits_for_metrics=five_best,
    )
    # Not earlier: by now every process of a distributed run has looked into the folder.
    if trainer.is_world_process_zero() and last is None:
        write_json(settings_file, settings)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    scores = trainer.evaluate()
    log = {
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "from_scratch": from_scratch,
        "data": Path(data).resolve().name if Path(data).exists() else str(data),
        "count": len(held_out),
        "train_count": len(images),
        "top1": scores["eval_top1"],
        "top5": scores["eval_top5"],
        "recipe": asdict(recipe),
        "config": config,
        "command": command,
        "seconds": trainer.seconds,
        "steps": trainer.state.global_step,
        "machine": _machine(accelerated, processes),
        "history": trainer.state.log_history,
    }
    if trainer.is_world_process_zero():
        with trainer.averaged_weights():
            network.eval().to(memory_format=torch.contiguous_format)
            network.save_pretrained(output, processor=processor, card=training_card(log, network.config))
        write_json(output / "training_log.json", log)
        draw_learning_curve(log["history"], output / "learning_curve.png")
    return log


def _build(
    model: str, from_scratch: bool, label_names: list[str], recipe: Recipe, changes: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The network to train, and interpolation and channel order of its images."""
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
    if from_scratch:
        if checkpoint is None:
            config = CONFIG_CLASSES[version].from_preset(model, id2label=labels, **changes)  # type: ignore[attr-defined]
        else:
            config = load_config(checkpoint, id2label=labels, **changes)
        network = runtimes.model_class(version)(config)
        # A network from scratch takes photos as they are: nothing to inherit from OpenCV's BGR.
        filter_of_version = "bilinear" if version == "mobilevit" else "bicubic"
        look = {"interpolation": preset.interpolation if preset else filter_of_version, "channel_order": "rgb"}
    else:
        network = runtimes.from_pretrained(model, id2label=labels, **changes)
        processor = runtimes.image_processor(model)
        look = {"interpolation": processor.interpolation, "channel_order": processor.channel_order}
    if recipe.freeze_backbone:
        network.base_model.requires_grad_(False)
    return network.to(memory_format=torch.channels_last).train(), look


def _machine(accelerated: bool, processes: int) -> str:
    if accelerated:
        return f"{processes} × {torch.cuda.get_device_name()}"
    return f"{processes} × {torch.get_num_threads()} CPU threads ({platform.machine()})"
