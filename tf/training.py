"""Training in Keras: `keras.Model.fit` on one or many devices, resumable, with the recipes of the PyTorch command."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tqdm import tqdm

from mobilevit_hub.data import SizedBatches
from mobilevit_hub.errors import InputError
from mobilevit_hub.recipes import Recipe
from mobilevit_hub.reports import write_json
from mobilevit_hub.training import Run, last_complete_checkpoint

from .data import training_batches, validation_batches
from .pretrained import number_type

WEIGHTS_FILE, AVERAGE_FILE = "state.weights.h5", "average.npz"


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

    Raises:
        InputError: The recipe asks for Muon, which is for PyTorch.
    """
    if recipe.muon_learning_rate:
        raise InputError(
            f"muon_learning_rate is {recipe.muon_learning_rate!r}, but Muon is there in PyTorch only; leave it at 0, "
            "or take framework 'pt'.",
            field="muon_learning_rate",
            found=recipe.muon_learning_rate,
        )
    schedule = WarmupCosine(
        recipe.learning_rate,
        recipe.final_learning_rate,
        round(recipe.warmup_epochs * steps_per_epoch),
        len(recipe.sizes) * steps_per_epoch,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=recipe.weight_decay, epsilon=1e-8, global_clipnorm=recipe.clip_norm or None
    )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) <= 1])
    return optimizer


def fit(run: Run) -> tuple[Any, dict[str, Any]]:
    """Trains the network of a run.

    On all visible GPUs, and with the other processes that `TF_CONFIG` names; or under the strategy whose scope
    it is called in.

    Args:
        run: Recipe, photos and starting network.

    Returns:
        The trained network, with the weight average where there is one, None in all processes but one; and
        scores, `steps`, `seconds`, `machine` and `history` for the log.
    """
    recipe, started = run.recipe, time.time()
    strategy = _strategy()
    devices, is_chief = strategy.num_replicas_in_sync, _is_chief()
    progress = run.progress and is_chief
    steps_per_epoch = run.steps_per_epoch(devices)
    steps = len(recipe.sizes) * steps_per_epoch
    last, state = last_complete_checkpoint(run.checkpoints) if run.resume else (None, {})
    if run.resume and last is None:
        run.warn_of_no_checkpoint()
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), number_type("mixed_bfloat16" if recipe.bf16 else None):
        network = run.build()
        network.backbone.trainable = not recipe.freeze_backbone
        optimizer = make_optimizer(recipe, network, steps_per_epoch)
        network.compile(
            optimizer=optimizer,
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
            metrics=[keras.metrics.CategoricalAccuracy("top1"), keras.metrics.TopKCategoricalAccuracy(5, "top5")],
        )
        optimizer.build(network.trainable_variables)
    average = WeightAverage(network, recipe.ema_momentum)
    if last is not None:
        network.load_weights(last / WEIGHTS_FILE)
        average.load(last / AVERAGE_FILE)
    elif is_chief:
        run.start()
    history, seconds_before = state.get("history", []), state.get("seconds", 0)
    batch_size = recipe.batch_size * devices
    order = SizedBatches(len(run.images), batch_size, recipe.sizes, recipe.seed)
    held_out = validation_batches(run.held_out, run.processor, max(64, batch_size), one_hot=True, workers=run.workers)
    step = int(optimizer.iterations)
    bar = tqdm(desc="training", unit="step", total=steps, initial=step, disable=not progress, mininterval=1)
    callbacks = [_Progress(bar)] + [average] * bool(recipe.ema_momentum)
    while step < steps:
        epoch, first = divmod(step, steps_per_epoch)
        end = min(first + run.save_steps, steps_per_epoch)
        order.set_epoch(epoch)
        # Made here and now: the next round must not change what this one's thread reads.
        keys = list(order)[first:end]
        photos = training_batches(
            run.images, keys.copy, len(keys), recipe.sizes[epoch], run.processor, recipe, one_hot=True,
            workers=run.workers,
        )  # fmt: skip
        loss = network.fit(photos, shuffle=False, verbose=0, callbacks=callbacks).history["loss"][0]
        step = epoch * steps_per_epoch + end
        seconds = seconds_before + round(time.time() - started)
        history.append({"epoch": step / steps_per_epoch, "step": step, "loss": float(loss), "seconds": seconds})
        if end == steps_per_epoch:
            with average.in_place():
                scores = evaluate(network, held_out, len(run.held_out))
            history.append({"epoch": epoch + 1, "step": step, "seconds": seconds}
                           | {f"eval_{name}": score for name, score in scores.items()})  # fmt: skip
            if progress:
                tqdm.write(
                    f"epoch {epoch + 1}: top-1 {100 * scores['top1']:.2f} %, top-5 {100 * scores['top5']:.2f} %",
                    file=sys.stderr,
                )
        if is_chief:
            _save(run.checkpoints, step, network, average, {"history": history, "seconds": seconds})
    bar.close()
    average.take()
    results = {
        **evaluate(network, held_out, len(run.held_out)),
        "seconds": seconds_before + round(time.time() - started),
        "steps": steps,
        "machine": _machine(devices),
        "history": history,
    }
    return (network if is_chief else None), results


def evaluate(model: keras.Model, photos: Any, count: int) -> dict[str, float]:
    """Top-1 and top-5, as fractions, of a classifier that was compiled by `fit`.

    Args:
        model: Maps `pixel_values` to logits.
        photos: Batches with labels as probabilities.
        count: Number of photos.
    """
    scores = model.evaluate(photos, verbose=0, return_dict=True)
    # Keras divides in float32.
    return {name: round(scores[name] * count) / count for name in ("top1", "top5")}


class WeightAverage(keras.callbacks.Callback):
    """Moving average of weights and norm statistics, by step, as in the PyTorch command.

    Keras' optimisers average the trained weights only, and put the average in their place whenever a call
    of `fit` ends, which here is more than once in a run.

    Args:
        model: Whose weights are averaged.
        momentum: Share of the new weights; 0: no average.
    """

    def __init__(self, model: Any, momentum: float) -> None:
        super().__init__()
        variables = [weight.variable for weight in model.named_weights().values()]
        self.variables = [v for v in variables if "float" in v.dtype]
        self.momentum = momentum
        self.average: list[Any] | None = None

        def mixed(average: list[Any]) -> list[Any]:
            return [old + momentum * (v.value - old) for old, v in zip(average, self.variables, strict=True)]

        self._mixed = tf.function(mixed, autograph=False)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the average; the first step starts it."""
        self.average = self._values() if self.average is None else self._mixed(self.average)

    def _values(self) -> list[Any]:
        return [tf.identity(v.value) for v in self.variables]

    def take(self) -> None:
        """Gives the model the average, where there is one."""
        if self.average is not None:
            for variable, value in zip(self.variables, self.average, strict=True):
                variable.assign(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Runs its body with the average in place of the weights."""
        own = self._values()
        self.take()
        try:
            yield
        finally:
            for variable, value in zip(self.variables, own, strict=True):
                variable.assign(value)

    def save(self, path: Path) -> None:
        """Writes the average, where there is one."""
        if self.average is not None:
            np.savez(path, *[value.numpy() for value in self.average])

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        if self.momentum and path.exists():
            with np.load(path) as arrays:
                self.average = [tf.constant(arrays[name]) for name in arrays.files]


class _Progress(keras.callbacks.Callback):
    """A bar on stderr; Keras' own goes to stdout, where the result goes."""

    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self.bar = bar

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts the step."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{(logs or {})['loss']:.3f}", refresh=False)


def _save(checkpoints: Path, step: int, network: keras.Model, average: WeightAverage, state: dict[str, Any]) -> None:
    """Writes a checkpoint, its state last, and drops all earlier ones but one."""
    folder = checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    network.save_weights(folder / WEIGHTS_FILE)
    average.save(folder / AVERAGE_FILE)
    write_json(folder / "trainer_state.json", state)
    kept = sorted(checkpoints.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for old in kept[:-2]:
        shutil.rmtree(old)


def _strategy() -> tf.distribute.Strategy:
    """How to spread the work: as the surrounding scope says, over processes, over GPUs, or not at all."""
    if tf.distribute.has_strategy():
        return tf.distribute.get_strategy()
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _is_chief() -> bool:
    """Whether this process writes the files; of several, which `TF_CONFIG` describes, the first one does."""
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
    return task.get("type", "chief") == "chief" or (task["type"] == "worker" and task.get("index", 0) == 0)


def _machine(devices: int) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU, TensorFlow"
    return f"{devices} × {name} ({platform.machine()})"
