"""Training in Keras, on one or many devices, resumable, with the recipes of the PyTorch command."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tqdm import tqdm

from mobilevit_hub.errors import InputError
from mobilevit_hub.files import write_json
from mobilevit_hub.recipes.run import Run, last_complete_checkpoint
from mobilevit_hub.recipes.transforms import SizedBatches

from ..data import Batch, photo_errors, training_batches, validation_batches
from ..layers import require_tensorflow
from ..weights import dtype_policy_scope, layers_of
from .optimizer import make_optimizer
from .state import STATE_FILE, TrainingState


def check() -> None:
    """Refuses, before any photo is read, where training in Keras is not possible.

    Raises:
        MissingDependencyError: Keras runs on another backend than TensorFlow.
    """
    require_tensorflow("Training in Keras")


def fit(run: Run) -> tuple[Any, dict[str, Any]]:
    """Trains the network of a run.

    On all visible GPUs, and with the other processes that `TF_CONFIG` names; or under the strategy whose scope
    it is called in. Each device takes `batch_size` photos a step, and the norms see those of all devices.

    Args:
        run: Recipe, photos and starting network.

    Returns:
        The trained network, with the weight average where there is one, None in all processes but one; and
        scores, `steps`, `seconds`, `machine` and `history` for the log.
    """
    recipe, started = run.recipe, time.time()
    strategy = _strategy()
    devices = strategy.num_replicas_in_sync
    steps_per_epoch = run.steps_per_epoch(devices)
    steps = len(recipe.sizes) * steps_per_epoch
    last, log = last_complete_checkpoint(run.checkpoints) if run.resume else (None, {})
    if run.resume and last is None:
        run.warn_of_no_checkpoint()
    if log.get("devices", devices) != devices:
        raise InputError(
            f"The run in {run.checkpoints} was started on {log['devices']} devices and here are {devices}, which makes "
            "other steps; resume it on as many, or choose another output folder.",
            field="resume",
            found=devices,
            expected=log["devices"],
        )
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), dtype_policy_scope("mixed_bfloat16" if recipe.bf16 else None):
        network = run.build()
        if recipe.freeze_backbone:
            freeze(network.backbone)
        network.compile(
            make_optimizer(recipe, network, steps_per_epoch),
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
        )
        network.optimizer.build(network.trainable_variables)
    state = TrainingState(network, recipe.ema_momentum)
    if last is not None:
        state.load(last / STATE_FILE)
    elif run.is_main_process:
        run.start()

    # Not `network.fit`: Keras 3.15 cannot on several machines (keras-team/keras#20585).
    @tf.function
    def train_step(batch: Any) -> Any:
        logs = strategy.run(network.train_step, args=(batch,))
        return strategy.reduce("MEAN", logs["loss"], axis=None)

    @tf.function
    def classify(pixel_values: Any) -> Any:
        return network(pixel_values, training=False)

    history, seconds_before = log.get("history", []), log.get("seconds", 0)
    failures: list[Exception] = []
    held_out = validation_batches(
        run.held_out, run.processor, 64, one_hot=False, workers=run.workers, failures=failures
    )
    batches: list[Batch] = []  # of the steps to the next checkpoint
    photos_of_size = functools.cache(functools.partial(_photos, strategy, batches, run, failures))
    order = SizedBatches(len(run.images), recipe.batch_size, recipe.sizes, recipe.seed)
    step = int(ops.convert_to_numpy(network.optimizer.iterations))
    bar = tqdm(desc="training", unit="step", total=steps, initial=step, disable=not run.progress, mininterval=1)
    while step < steps:
        epoch, first = divmod(step, steps_per_epoch)
        end = min(first + run.save_steps, steps_per_epoch)
        order.set_epoch(epoch)
        batches[:] = islice(order, first * devices, end * devices)
        network.reset_metrics()
        with photo_errors(failures):
            for batch in photos_of_size(recipe.sizes[epoch]):
                loss = float(train_step(batch))  # mean since the last checkpoint
                state.update_average()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        step = epoch * steps_per_epoch + end
        seconds = seconds_before + round(time.time() - started)
        history.append({"epoch": step / steps_per_epoch, "step": step, "loss": loss, "seconds": seconds})
        if end == steps_per_epoch:
            with state.average_in_place(), photo_errors(failures):
                scores = evaluate(classify, held_out)
            history.append({"epoch": epoch + 1, "step": step, "eval_top1": scores["top1"],
                            "eval_top5": scores["top5"], "seconds": seconds})  # fmt: skip
            if run.progress:
                top1, top5 = 100 * scores["top1"], 100 * scores["top5"]
                tqdm.write(f"epoch {epoch + 1}: top-1 {top1:.2f} %, top-5 {top5:.2f} %", file=sys.stderr)
        if run.is_main_process:
            _save(run.checkpoints, step, state, {"history": history, "seconds": seconds, "devices": devices})
    bar.close()
    state.take_average()
    with photo_errors(failures):
        scores = evaluate(classify, held_out)
    results = {
        **scores,
        "seconds": seconds_before + round(time.time() - started),
        "steps": steps,
        "machine": _machine(devices),
        "history": history,
    }
    return (network if run.is_main_process else None), results


def _photos(
    strategy: tf.distribute.Strategy, batches: list[Batch], run: Run, failures: list[Exception], size: int
) -> Any:
    """A data set of what `batches` holds when a pass begins; each device gets every `devices`-th batch.

    Made once for each image size: TensorFlow never lets go of one. No process prepares another's photos.
    """

    def own(context: tf.distribute.InputContext) -> Any:
        devices = context.num_replicas_in_sync
        here = devices // context.num_input_pipelines

        def mine() -> list[Batch]:
            return [batch for i, batch in enumerate(batches) if i % devices // here == context.input_pipeline_id]

        return training_batches(
            run.images, mine, size, run.processor, run.recipe, one_hot=True, workers=run.workers, failures=failures
        )

    return strategy.distribute_datasets_from_function(own)


def freeze(backbone: Any) -> None:
    """Makes a network compute in training as it does otherwise; its weights and statistics stay as they are."""
    backbone.trainable = False
    for _, layer in layers_of(backbone):
        if isinstance(layer, keras.layers.Dropout):  # which Keras leaves on
            layer.rate = 0.0


def evaluate(classify: Callable[[Any], Any], photos: Any) -> dict[str, float]:
    """Top-1 and top-5, as fractions.

    Args:
        classify: Maps `pixel_values` to logits.
        photos: Batches with class numbers as labels.
    """
    hits = [
        np.argsort(-classify(pixel_values).numpy(), axis=-1, kind="stable")[:, :5] == labels.numpy()[:, None]
        for pixel_values, labels in photos
    ]
    every = np.concatenate(hits)
    return {"top1": float(every[:, 0].mean()), "top5": float(every.any(axis=1).mean())}


def _save(checkpoints: Path, step: int, state: TrainingState, log: dict[str, Any]) -> None:
    """Writes a checkpoint, its log last, and drops all earlier ones but one."""
    folder = checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    state.save(folder / STATE_FILE)
    write_json(folder / "trainer_state.json", log)
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


def _machine(devices: int) -> str:
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU, TensorFlow"
    return f"{devices} × {name} ({platform.machine()})"
