"""The state of a Keras training run: saved, and restored to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

STATE_FILE = "state.npz"


class TrainingState:
    """All that a run changes: weights, optimiser, random states of the dropouts, and the weight average.

    The moving average is of weights and norm statistics, by step, as in the PyTorch command; that of Keras'
    optimisers leaves out the statistics.

    Args:
        model: Compiled, with a built optimiser.
        momentum: Share of the new weights in the average; 0: no average.
    """

    def __init__(self, model: Any, momentum: float) -> None:
        self.variables = [*model.variables, *model.optimizer.variables]
        weights = [weight.variable for weight in model.named_weights().values()]
        self.averaged, self.momentum = [v for v in weights if "float" in v.dtype], momentum
        self.average: list[Any] | None = None

        def mixed(average: list[Any]) -> list[Any]:
            return [old + momentum * (v.value - old) for old, v in zip(average, self.averaged, strict=True)]

        self._mixed = tf.function(mixed, autograph=False)

    def update_average(self) -> None:
        """Moves the average; the first step starts it."""
        if self.momentum:
            self.average = self._values() if self.average is None else self._mixed(self.average)

    def _values(self) -> list[Any]:
        return [tf.identity(v.value) for v in self.averaged]

    def take_average(self) -> None:
        """Gives the model the average, where there is one."""
        if self.average is not None:
            _assign(self.averaged, self.average)

    @contextmanager
    def average_in_place(self) -> Iterator[None]:
        """Runs its body with the average, where there is one, in place of the weights."""
        if self.average is None:
            yield
            return
        own = self._values()
        self.take_average()
        try:
            yield
        finally:
            _assign(self.averaged, own)

    def save(self, path: Path) -> None:
        """Writes everything."""
        np.savez(path, *[ops.convert_to_numpy(v) for v in [*self.variables, *(self.average or [])]])

    def load(self, path: Path) -> None:
        """Reads what `save` wrote."""
        with np.load(path) as file:
            values = [file[name] for name in file.files]
        _assign(self.variables, values[: len(self.variables)])
        self.average = [tf.constant(value) for value in values[len(self.variables) :]] or None


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
