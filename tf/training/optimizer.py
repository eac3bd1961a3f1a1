"""The optimiser of a recipe in Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from mobilevit_hub.recipes.recipe import Recipe

from ..layers import replicas


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


@keras.saving.register_keras_serializable("mobilevit_hub")
class AdamW(keras.optimizers.AdamW):
    """AdamW that clips the gradient of all devices together; Keras' own clips what each of them found.

    Args:
        learning_rate: A number or a schedule.
        max_norm: Largest global gradient norm; 0: no clipping.
        options: As for `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate: Any = 1e-3, max_norm: float = 0.0, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.max_norm = max_norm

    def apply(self, grads: list[Any], trainable_variables: Any = None) -> None:
        """Updates the variables."""
        if self.max_norm:
            context = replicas()
            if context is not None:
                grads = context.all_reduce("SUM", grads)
            grads, _ = tf.clip_by_global_norm(grads, self.max_norm)
            if context is not None:  # which Keras is about to add up
                grads = [gradient / context.num_replicas_in_sync for gradient in grads]
        super().apply(grads, trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "max_norm": self.max_norm}


def make_optimizer(recipe: Recipe, model: keras.Model, steps_per_epoch: int) -> AdamW:
    """AdamW as the recipe says; norms and biases are not decayed unless it asks for it.

    Args:
        recipe: How to train.
        model: Whose variables are trained.
        steps_per_epoch: Steps of one pass over the photos.
    """
    schedule = WarmupCosine(
        recipe.learning_rate,
        recipe.final_learning_rate,
        round(recipe.warmup_epochs * steps_per_epoch),
        len(recipe.sizes) * steps_per_epoch,
    )
    optimizer = AdamW(schedule, recipe.clip_norm, weight_decay=recipe.weight_decay, epsilon=1e-8)
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) <= 1])
    return optimizer
