"""Classifies pictures with MediaPipe Tasks, in the environment of that library: run by `mediapipe_classifier.py`.

    python mediapipe_worker.py FILE.tflite PICTURES.npy COUNT

The pictures are `(B, H, W, 3)` RGB bytes. Prints the best COUNT classes of each as JSON: index, name, score.
"""

from __future__ import annotations

import json
import sys

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def main(file: str, pictures: str, count: str) -> None:
    """Prints the answers."""
    options = vision.ImageClassifierOptions(BaseOptions(model_asset_path=file), max_results=int(count))
    with vision.ImageClassifier.create_from_options(options) as task:
        images = [mp.Image(image_format=mp.ImageFormat.SRGB, data=picture) for picture in np.load(pictures)]
        answers = [task.classify(image).classifications[0].categories for image in images]
    print(json.dumps([[(c.index, c.category_name, c.score) for c in categories] for categories in answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
