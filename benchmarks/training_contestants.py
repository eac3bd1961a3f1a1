"""A training step in either framework: each function returns `"step"`, which learns and returns the loss before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from inference_contestants import Functions, keras_twin, torch_functions

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


def keras_training(network: str, weights: Path, threads: int) -> Functions:
    """The Keras twin: the step of `fit`."""
    model = keras_twin(network, weights, threads)
    import keras

    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return {
        "call": lambda x: keras.ops.convert_to_numpy(model(x, training=False)),
        "step": lambda x: model.train_on_batch(x, np.arange(len(x))),
    }


def torch_training(network: str, weights: Path, threads: int, *, channels_last: bool = False) -> Functions:
    """The PyTorch twin, eager."""
    import torch

    from mobilevit_hub.pt import MobileViTForImageClassification, MobileViTV2ForImageClassification

    torch.set_num_threads(threads)
    cls = MobileViTV2ForImageClassification if "v2" in network else MobileViTForImageClassification
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = cls.from_pretrained(weights).to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(array: np.ndarray) -> float:
        model.train()
        pixels = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(pixels).logits, torch.arange(len(array)))
        loss.backward()
        optimizer.step()
        return loss.item()

    forward = torch_functions(torch, lambda pixels: model.eval()(pixels).logits)
    return {"call": lambda x: forward["call"](forward["prepare"](x)), "step": step}


def torch_training_channels_last(network: str, weights: Path, threads: int) -> Functions:
    """The PyTorch twin, eager, with the memory layout that its training command uses."""
    return torch_training(network, weights, threads, channels_last=True)
