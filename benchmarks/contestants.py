"""One contestant of an inference benchmark, in a process of its own: run by `keras_inference.py`.

    python contestants.py NAME NETWORK WEIGHTS SIZE THREADS

Reads questions and writes answers, a line of JSON each: `["logits", B]` → the logits of B images;
`["time", WHAT, B, CALLS]` → milliseconds of each call; no more lines: the end. Needs only NumPy and the
library it measures, since those live in different environments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7


def images(count: int, size: int) -> np.ndarray:
    """The same noise in every process, `(count, size, size, 3)` in [0, 1]."""
    return np.random.default_rng(SEED).random((count, size, size, 3), np.float32)


# --- the contestants: each returns functions from images to logits, by what they measure -----------------------------


def ours(network: str, weights: Path, threads: int, *, fused: bool) -> dict[str, Callable[[np.ndarray], Any]]:
    """The Keras twin: its inference form, or the trainable model under `tf.function`."""
    import tensorflow as tf

    set_tensorflow_threads(tf, threads)
    from mobilevit_hub import tf as twin
    from mobilevit_hub.tf.inference import fuse

    cls = twin.TFMobileViTV2ForImageClassification if "v2" in network else twin.TFMobileViTForImageClassification
    model = cls.from_pretrained(weights)
    if fused:
        form = fuse(model)
        return {"call": lambda x: form(x).numpy(), "predict": form.predict}
    compiled = tf.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def kecam(network: str, weights: Path, threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """keras-cv-attention-models on tf-keras, under `tf.function`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    set_tensorflow_threads(tf, threads)
    from keras_cv_attention_models import mobilevit

    name = {"mobilevit-xxs": "MobileViT_XXS", "mobilevit-xs": "MobileViT_XS", "mobilevit-s": "MobileViT_S"}.get(network)
    name = name or f"MobileViT_V2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = getattr(mobilevit, name)(input_shape=(256, 256, 3), pretrained=None, classifier_activation=None)
    tensors = dict(np.load(weights))
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(tensors.pop(f"{layer.name}/{variable.name.split('/')[-1].removesuffix(':0')}"))
    if tensors:
        raise ValueError(f"{network}: keras-cv-attention-models has no place for {sorted(tensors)}.")
    compiled = tf.function(lambda x: model(x, training=False))
    return {"call": lambda x: compiled(x).numpy()}


def transformers(network: str, weights: Path, threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """Stock transformers, channels_last."""
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(weights)
    return {"call": pytorch_call(torch, model, threads, lambda outputs: outputs.logits)}


def timm(network: str, weights: Path, threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """timm, channels_last."""
    import torch
    from torchvision_stand_in import import_without_torchvision

    name = network.replace("-", "_")
    if "v2" in network:
        name = f"mobilevitv2_{round(float(network.removeprefix('mobilevitv2-')) * 100):03}"
    model = import_without_torchvision("timm").create_model(name)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in np.load(weights).items()}, strict=True)
    return {"call": pytorch_call(torch, model, threads, lambda outputs: outputs)}


CONTESTANTS = {
    "fused": lambda *arguments: ours(*arguments, fused=True),
    "plain": lambda *arguments: ours(*arguments, fused=False),
    "kecam": kecam,
    "transformers": transformers,
    "timm": timm,
}


def set_tensorflow_threads(tf: Any, threads: int) -> None:
    """Threads of one operation, and operations at a time."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def pytorch_call(torch: Any, model: Any, threads: int, logits: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """A PyTorch model that takes channels-last arrays as they are in memory."""
    torch.set_num_threads(threads)
    model.eval().to(memory_format=torch.channels_last)

    def call(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return logits(model(torch.from_numpy(array).permute(0, 3, 1, 2))).numpy()

    return call


# --- questions and answers -------------------------------------------------------------------------------------------


def main() -> None:
    """Answers until the questions end."""
    # what libraries print goes to stderr, so that answers stay alone on stdout
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, network, weights, size, threads = sys.argv[1:]
    functions = CONTESTANTS[name](network, Path(weights), int(threads))
    batches: dict[int, np.ndarray] = {}
    answers.write(json.dumps(sorted(functions)) + "\n")
    for line in sys.stdin:
        question, *arguments = json.loads(line)
        if question == "logits":
            answer = functions["call"](images(arguments[0], int(size))).tolist()
        else:
            what, count, calls = arguments
            if count not in batches:
                batches[count] = images(count, int(size))
            answer = []
            for _ in range(calls):
                started = time.perf_counter()
                functions[what](batches[count])
                answer.append(1000 * (time.perf_counter() - started))
            time.sleep(0.01)  # threads that still spin would disturb the next contestant
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
