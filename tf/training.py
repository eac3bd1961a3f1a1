"""Training with `keras.Model.fit`: the command's `--framework tf`, with the recipes of the PyTorch command."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mobilevit_hub import runtimes
from mobilevit_hub.configuration import CONFIG_CLASSES
from mobilevit_hub.data import SizedBatches, open_images
from mobilevit_hub.errors import InputError, MobileViTHubWarning
from mobilevit_hub.image_processing import processor_for
from mobilevit_hub.json_files import read_json
from mobilevit_hub.presets import get_preset
from mobilevit_hub.recipes import Recipe, get_recipe
from mobilevit_hub.reports import draw_learning_curve, training_card, write_json

from .data import image_dataset


@keras.saving.register_keras_serializable("mobilevit_hub")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a cosine to the final learning rate, by step.

    Args:
        peak: Largest learning rate.
        final: Learning rate at the last step.
        warmup_steps: Steps of the warm-up.
        steps: Steps of the run.
    """

    def __init__(self, peak: float, final: float, warmup_steps: int, steps: int) -> None:
        self.peak, self.final, self.warmup_steps, self.steps = peak, final, warmup_steps, steps

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step, counted from 0."""
        ops = keras.ops
        step = ops.cast(step, "float32")
        warm = step / max(1, self.warmup_steps)
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + ops.cos(np.pi * ops.clip(share, 0.0, 1.0)))
        floor = self.final / self.peak
        return self.peak * ops.where(step < self.warmup_steps, warm, floor + (1 - floor) * cosine)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"peak": self.peak, "final": self.final, "warmup_steps": self.warmup_steps, "steps": self.steps}


def make_optimizer(recipe: Recipe, model: keras.Model, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """AdamW as the recipe says; norms and biases are not decayed unless it asks for it.

    Args:
        recipe: How to train.
        model: Whose variables are trained.
        steps_per_epoch: Steps of one pass over the photos.
    """
    if recipe.muon_learning_rate:
        raise InputError(
            "muon_learning_rate is for the PyTorch command; leave it at 0 with framework tf.",
            field="muon_learning_rate",
        )
    schedule = WarmupCosine(
        recipe.learning_rate,
        recipe.final_learning_rate,
        round(recipe.warmup_epochs * steps_per_epoch),
        len(recipe.sizes) * steps_per_epoch,
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=recipe.weight_decay,
        epsilon=1e-8,
        global_clipnorm=recipe.clip_norm or None,
        use_ema=recipe.ema_momentum > 0,
        ema_momentum=1 - recipe.ema_momentum,
    )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) <= 1])
    return optimizer


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
    progress: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Trains a classifier in Keras and writes the same folder as the PyTorch command.

    Args:
        data: Labelled photos: folder of class folders, parquet, or Hub id (see `data.open_images`).
        output: Folder to write: weights, config, processor, card, `training_log.json`,
            `learning_curve.png`; `checkpoints/` below it is what `resume` continues from.
        model: Checkpoint to start from, or whose architecture to use.
        from_scratch: Start from random weights instead of the checkpoint's.
        recipe: How to train; default: the `"finetune"` recipe.
        validation: Labelled photos to evaluate on; default: the validation split of `data`.
        config: Config fields to change, e.g. `{"output_stride": 16}`.
        resume: Continue after the last complete epoch of `output`.
        progress: Whether to show progress bars.
        command: The command line, for the card.

    Returns:
        The content of `training_log.json`: settings, history, `top1`, `top5`, `count`, seconds.
    """
    recipe, output, config, started = recipe or get_recipe(), Path(output), config or {}, time.time()
    checkpoints = output / "checkpoints"
    saved, state_file = checkpoints / "last.keras", checkpoints / "state.json"
    if not resume and checkpoints.exists() and any(checkpoints.iterdir()):
        raise InputError(
            f"{checkpoints} holds an earlier run; continue it with --resume or choose another output folder.",
            path=checkpoints,
        )
    keras.utils.set_random_seed(recipe.seed)
    images, held_out = open_images(data, "train"), open_images(validation or data, "validation")
    if held_out.label_names != images.label_names:
        raise InputError(
            f"Training and validation photos have different classes: {images.label_names[:3]}… and "
            f"{held_out.label_names[:3]}….",
            field="validation",
        )
    for photos in (images, held_out):
        photos.keep_in_memory(progress)
    network, look = _build(model, from_scratch, images.label_names, recipe, config)
    processor = processor_for(*recipe.eval_sizes, look["interpolation"], look["channel_order"])
    network.config.image_size = recipe.eval_sizes[1]
    steps_per_epoch = len(SizedBatches(len(images), recipe.batch_size, recipe.sizes))
    network.compile(
        optimizer=make_optimizer(recipe, network, steps_per_epoch),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    state: dict[str, Any] = {"epoch": 0, "history": [], "seconds": 0}
    if resume and state_file.exists():
        state = read_json(state_file)
        network = keras.saving.load_model(saved)
    elif resume:
        warnings.warn(
            f"{checkpoints} holds no complete epoch; training starts at the beginning.",
            MobileViTHubWarning,
            stacklevel=2,
        )
    held_out_photos = image_dataset(held_out, processor, split="validation", batch_size=recipe.batch_size)
    for epoch in range(state["epoch"], len(recipe.sizes)):
        photos = image_dataset(
            images,
            processor,
            recipe=recipe,
            batch_size=recipe.batch_size,
            image_size=recipe.sizes[epoch],
            epoch=epoch,
            one_hot=True,
        )
        fitted = network.fit(photos, initial_epoch=epoch, epochs=epoch + 1, verbose=1 if progress else 0)
        record = {"epoch": epoch + 1, "loss": float(fitted.history["loss"][0])}
        with _averaged_weights(network):
            scores = evaluate(network, held_out_photos)
        state["history"].append(record | {f"eval_{name}": score for name, score in scores.items()})
        state["seconds"] += round(time.time() - started)
        started, state["epoch"] = time.time(), epoch + 1
        checkpoints.mkdir(parents=True, exist_ok=True)
        network.save(saved.with_suffix(".new.keras"))
        saved.with_suffix(".new.keras").replace(saved)
        write_json(state_file, state)
    if recipe.ema_momentum:
        network.optimizer.finalize_variable_values(network.trainable_variables)
    scores = evaluate(network, held_out_photos)
    log = {
        "model": Path(model).resolve().name if Path(model).is_dir() else model,
        "framework": "tf",
        "from_scratch": from_scratch,
        "data": Path(data).resolve().name if Path(data).exists() else str(data),
        "count": len(held_out),
        "train_count": len(images),
        **scores,
        "recipe": asdict(recipe),
        "config": config,
        "command": command,
        "seconds": state["seconds"],
        "steps": len(recipe.sizes) * steps_per_epoch,
        "machine": f"{platform.machine()} CPU, TensorFlow",
        "history": state["history"],
    }
    network.save_pretrained(output, processor=processor, card=training_card(log, network.config))
    write_json(output / "training_log.json", log)
    draw_learning_curve(log["history"], output / "learning_curve.png")
    return log


def evaluate(model: keras.Model, photos: Any) -> dict[str, float]:
    """Top-1 and top-5 of a classifier, as fractions.

    Args:
        model: Maps `pixel_values` to logits.
        photos: A dataset of `image_dataset` with class numbers as labels.
    """
    hits1, hits5, count = 0, 0, 0
    for pixel_values, labels in photos:
        logits = keras.ops.convert_to_numpy(model.predict_on_batch(pixel_values))
        best = np.argsort(-logits, axis=-1)[:, :5]
        right = best == np.asarray(labels)[:, None]
        hits1, hits5, count = hits1 + int(right[:, 0].sum()), hits5 + int(right.any(axis=1).sum()), count + len(best)
    return {"top1": hits1 / count, "top5": hits5 / count}


@contextmanager
def _averaged_weights(model: keras.Model) -> Iterator[None]:
    """Runs its body with the optimiser's weight average in place of the weights, where there is one."""
    if not model.optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    own = [keras.ops.convert_to_numpy(v) for v in variables]
    model.optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


def _build(
    model: str, from_scratch: bool, label_names: list[str], recipe: Recipe, changes: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    """The network to train, and interpolation and channel order of its images."""
    labels = dict(enumerate(label_names))
    if recipe.dropout >= 0:
        changes = {"hidden_dropout_prob": recipe.dropout, "classifier_dropout_prob": recipe.dropout, **changes}
    if from_scratch:
        preset = get_preset(model)
        config = CONFIG_CLASSES[preset.model_type].from_preset(model, id2label=labels, **changes)  # type: ignore[attr-defined]
        network = runtimes.model_class(config.model_type, "tf")(config)
        # A network from scratch takes photos as they are: nothing to inherit from OpenCV's BGR.
        look = {"interpolation": preset.interpolation, "channel_order": "rgb"}
    else:
        network = runtimes.from_pretrained(model, framework="tf", id2label=labels, **changes)
        processor = runtimes.image_processor(model)
        look = {"interpolation": processor.interpolation, "channel_order": processor.channel_order}
    network.backbone.trainable = not recipe.freeze_backbone
    return network, look
