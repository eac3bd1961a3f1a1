"""The optimiser of a recipe in Keras."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from mobilevit_hub.recipes.recipe import Recipe, is_hidden_matrix

from ..layers import replicas


class _ClippedTogether:
    """Clips the gradient of all devices together; Keras' own clips what each of them found."""

    max_norm: float

    def apply(self, grads: list[Any], trainable_variables: Any = None) -> None:
        """Updates the variables."""
        if self.max_norm:
            context = replicas()
            if context is not None:
                grads = context.all_reduce("SUM", grads)
            grads, _ = tf.clip_by_global_norm(grads, self.max_norm)
            if context is not None:  # which Keras is about to add up
                grads = [gradient / context.num_replicas_in_sync for gradient in grads]
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "max_norm": self.max_norm}  # type: ignore[misc]


@keras.saving.register_keras_serializable("mobilevit_hub")
class AdamW(_ClippedTogether, keras.optimizers.AdamW):
    """AdamW.

    Args:
        learning_rate: A number or a schedule.
        max_norm: Largest global gradient norm; 0: no clipping.
        options: As for `keras.optimizers.AdamW`.
    """

    def __init__(self, learning_rate: Any = 1e-3, max_norm: float = 0.0, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.max_norm = max_norm


@keras.saving.register_keras_serializable("mobilevit_hub")
class Muon(_ClippedTogether, keras.optimizers.Muon):
    """Muon for some variables and AdamW for the others, as `mobilevit_hub.pt.training.muon`.

    Keras' own takes matrices only. A kernel `(height, width, in, out)` is the matrix `(height · width · in, out)` here.

    Args:
        learning_rate: Of Muon, a number or a schedule; AdamW has `adam_lr_ratio` times as much.
        max_norm: As for `AdamW`.
        matrices: Paths of the variables for Muon.
        options: As for `keras.optimizers.Muon`.
    """

    def __init__(
        self, learning_rate: Any = 1e-3, max_norm: float = 0.0, matrices: list[str] | None = None, **options: Any
    ) -> None:
        super().__init__(learning_rate, **options)
        self.max_norm, self.matrices = max_norm, matrices or []

    def _should_use_adamw(self, variable: Any) -> bool:
        return variable.path not in self.matrices

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """The update made orthogonal, in its own shape."""
        matrix = super().zeropower_via_newtonschulz5(tf.reshape(x, (-1, x.shape[-1])), steps)
        return tf.reshape(matrix, x.shape)

    def lr_adjust(self, x: Any) -> Any:
        """Longer steps for more outputs than inputs, by the root of their ratio."""
        return x * max(1, x.shape[-1] ** 2 / x.shape.num_elements()) ** 0.5

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "matrices": self.matrices}


def learning_rates(peak: float, final: float, warmup_steps: int, steps: int) -> Any:
    """Linear warm-up from 0, then a cosine to the final learning rate, by step."""
    start = {"initial_learning_rate": 0.0, "warmup_target": peak} if warmup_steps else {"initial_learning_rate": peak}
    return keras.optimizers.schedules.CosineDecay(
        **start, decay_steps=max(1, steps - warmup_steps), alpha=final / peak, warmup_steps=warmup_steps
    )


def make_optimizer(recipe: Recipe, model: keras.Model, steps_per_epoch: int) -> AdamW | Muon:
    """AdamW or Muon as the recipe says; norms and biases are not decayed unless it asks for it.

    Args:
        recipe: How to train.
        model: Whose variables are trained.
        steps_per_epoch: Steps of one pass over the photos.
    """
    warmup, steps = round(recipe.warmup_epochs * steps_per_epoch), len(recipe.sizes) * steps_per_epoch
    final = recipe.final_learning_rate / recipe.learning_rate
    peak = recipe.muon_learning_rate or recipe.learning_rate
    rates = learning_rates(peak, final * peak, warmup, steps)
    options = {"weight_decay": recipe.weight_decay, "epsilon": 1e-8}
    if recipe.muon_learning_rate:
        ratio = recipe.learning_rate / peak
        weights = model.named_weights().items()
        matrices = [weight.variable.path for name, weight in weights if is_hidden_matrix(name, weight.shape)]
        optimizer = Muon(
            rates,
            recipe.clip_norm,
            matrices,
            adam_lr_ratio=ratio,
            adam_weight_decay=recipe.weight_decay * ratio,  # Keras decays all by Muon's learning rate
            **options,
        )
    else:
        optimizer = AdamW(rates, recipe.clip_norm, **options)
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) <= 1])
    return optimizer
