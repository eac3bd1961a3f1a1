"""One contestant of a benchmark, in a process of its own: run by `processes.py`.

    python contestants.py NAME NETWORK WEIGHTS SIZE THREADS

Reads questions and writes answers, a line of JSON each: `["result", WHAT, B]` → what the function returns
for B images; `["time", WHAT, B, CALLS]` → milliseconds of each call; no more lines: the end. Needs only
NumPy and the library it measures, since those live in different environments.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
Functions = dict[str, Callable[[np.ndarray], Any]]


@functools.lru_cache
def images(count: int, size: int) -> np.ndarray:
    """The same noise in every process, `(count, size, size, 3)` in [0, 1]."""
    return np.random.default_rng(SEED).random((count, size, size, 3), np.float32)


# --- inference: each returns a function from images to logits, and what is timed besides "call" ----------------------


def fused(network: str, weights: Path, threads: int) -> Functions:
    """The Keras twin's inference form."""
    model = keras_twin(network, weights, threads)
    from mobilevit_hub.tf.inference import fuse

    form = fuse(model)
    return {"call": lambda x: form(x).numpy(), "predict": form.predict}


def plain(network: str, weights: Path, threads: int) -> Functions:
    """The Keras twin's trainable model under `tf.function`."""
    model = keras_twin(network, weights, threads)
    import tensorflow as tf

    compiled = tf.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def keras_twin(network: str, weights: Path, threads: int) -> Any:
    """The trainable Keras model."""
    import tensorflow as tf

    set_tensorflow_threads(tf, threads)
    from mobilevit_hub import tf as twin

    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    return cls.from_pretrained(weights)


def kecam(network: str, weights: Path, threads: int) -> Functions:
    """keras-cv-attention-models on tf-keras, under `tf.function`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported
    import tensorflow as tf

    set_tensorflow_threads(tf, threads)
    model = kecam_model(network, weights)
    compiled = tf.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def kecam_model(network: str, weights: Path, size: int = 256) -> Any:
    """The network of keras-cv-attention-models on tf-keras, with the weights of all."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    from keras_cv_attention_models import mobilevit

    name = {"mobilevit-xxs": "MobileViT_XXS", "mobilevit-xs": "MobileViT_XS", "mobilevit-s": "MobileViT_S"}.get(network)
    name = name or f"MobileViT_V2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = getattr(mobilevit, name)(input_shape=(size, size, 3), pretrained=None, classifier_activation=None)
    tensors = dict(np.load(weights))
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(tensors.pop(f"{layer.name}/{variable.name.split('/')[-1].removesuffix(':0')}"))
    if tensors:
        raise ValueError(f"{network}: keras-cv-attention-models has no place for {sorted(tensors)}.")
    return model


def transformers(network: str, weights: Path, threads: int) -> Functions:
    """Stock transformers, channels_last."""
    import torch
    from transformers import AutoModelForImageClassification

    torch.set_num_threads(threads)
    model = AutoModelForImageClassification.from_pretrained(weights).eval().to(memory_format=torch.channels_last)
    return {"call": without_gradients(torch, lambda x: model(x).logits)}


def timm(network: str, weights: Path, threads: int) -> Functions:
    """timm, channels_last."""
    import torch
    from torchvision_stand_in import import_without_torchvision

    torch.set_num_threads(threads)
    name = network.replace("-", "_")
    if "v2" in network:
        name = f"mobilevitv2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = import_without_torchvision("timm").create_model(name)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in np.load(weights).items()}, strict=True)
    model.eval().to(memory_format=torch.channels_last)
    return {"call": without_gradients(torch, model)}


def without_gradients(torch: Any, model: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A PyTorch model that takes channels-last arrays as they lie in memory."""

    def call(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(array).permute(0, 3, 1, 2)).numpy()

    return call


# --- training: each also returns a step that learns from a batch, and returns the loss before it ----------------------


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

    return {"call": without_gradients(torch, lambda x: model.eval()(x).logits), "step": step}


def torch_training_channels_last(network: str, weights: Path, threads: int) -> Functions:
    """The PyTorch twin, eager, with the memory layout that its training command uses."""
    return torch_training(network, weights, threads, channels_last=True)


CONTESTANTS = (fused, plain, kecam, transformers, timm, keras_training, torch_training, torch_training_channels_last)


def set_tensorflow_threads(tf: Any, threads: int) -> None:
    """Threads of one operation, and operations at a time."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


# --- questions and answers -------------------------------------------------------------------------------------------


def main() -> None:
    """Answers until the questions end."""
    # what libraries print goes to stderr, so that answers stay alone on stdout
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, network, weights, size, threads = sys.argv[1:]
    functions = {contestant.__name__: contestant for contestant in CONTESTANTS}[name](
        network, Path(weights), int(threads)
    )
    answers.write(json.dumps(sorted(functions)) + "\n")
    for line in sys.stdin:
        question, what, count, *calls = json.loads(line)
        batch = images(count, int(size))
        if question == "result":
            answer = np.asarray(functions[what](batch)).tolist()
        else:
            answer = [milliseconds(functions[what], batch) for _ in range(*calls)]
            time.sleep(0.01)  # threads that still spin would disturb the next contestant
        answers.write(json.dumps(answer) + "\n")


def milliseconds(function: Callable[[np.ndarray], Any], batch: np.ndarray) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function(batch)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
