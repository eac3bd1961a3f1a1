"""Finished `.tflite` files in MediaPipe Tasks, as an app opens them, against this package's runtime: same classes?

    python benchmarks/mediapipe_classifier.py FILE.tflite [FILE.tflite ...] --photos examples/photos

Both get the same pixels: the photo as this package resizes and crops it, which MediaPipe does not resize
again. Writes `mediapipe_classifier.md` and `.json` into `benchmarks/results/`, and returns 1 when MediaPipe
does not open a file or gives other classes. Takes seconds.

The first run makes the environment of MediaPipe (0.6 GB) under `benchmarks/.venv/`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from processes import ENVIRONMENTS, FOLDER, environment, table_head, table_row, write_results

from mobilevit_hub.errors import InputError
from mobilevit_hub.images.loading import image_files
from mobilevit_hub.tflite.model import Model

COUNT = 5
SECONDS = 120
"""For one file. MediaPipe has been seen to hang on files that it cannot use."""
Answer = tuple[int, str, float]
"""Index, name and score of a class."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; returns 1 when a class differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tflite")
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--environments", type=Path, default=FOLDER / ".venv")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "mediapipe_classifier.md")
    options = parser.parse_args(arguments)

    photos = image_files(options.photos)
    if not photos:
        raise InputError(f"There is no photo in {str(options.photos)!r}.", field="photos")
    python = environment("mediapipe", options.environments)
    record: dict[str, Any] = {"mediapipe": ENVIRONMENTS["mediapipe"][0][0], "files": {}}
    record["runtime"] = f"ai-edge-litert=={version('ai-edge-litert')}"
    for file in options.files:
        print(f"{file.name} …", file=sys.stderr, flush=True)
        model = Model(file)
        ours = [[(c["index"], c["label"], c["score"]) for c in model(photo, top_k=COUNT)] for photo in photos]
        theirs = classify_with_mediapipe(python, file, np.concatenate([as_bytes(model.prepare(p)) for p in photos]))
        record["files"][file.name] = compare([photo.name for photo in photos], ours, theirs)
    return write_results(options.output, *report(record))


def as_bytes(image: np.ndarray) -> np.ndarray:
    """What a runtime takes, as the picture that MediaPipe takes."""
    return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)


def classify_with_mediapipe(python: str, file: Path, pictures: np.ndarray) -> list[list[Answer]] | str:
    """MediaPipe's answer for each picture, or the last lines of what it said when it failed."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "pictures.npy")
        np.save(saved, pictures)
        command = [python, str(FOLDER / "mediapipe_worker.py"), str(file), str(saved), str(COUNT)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer in {SECONDS} seconds"
    if done.returncode:
        return " ".join(done.stderr.split())[-300:]
    return [[tuple(answer) for answer in answers] for answers in json.loads(done.stdout.splitlines()[-1])]


def compare(names: list[str], ours: list[list[Answer]], theirs: list[list[Answer]] | str) -> dict[str, Any]:
    """What is the same for how many photos, and by how much the scores of the same classes differ."""
    if isinstance(theirs, str):
        return {"error": theirs}
    both = list(zip(ours, theirs, strict=True))
    classes = [([a[:2] for a in one], [b[:2] for b in other]) for one, other in both]
    differences = [abs(a[2] - b[2]) for one, other in both for a in one for b in other if a[0] == b[0]]
    return {
        "photos": len(names),
        "same_first": sum(one[0] == other[0] for one, other in classes),
        "same_all": sum(one == other for one, other in classes),
        "largest_difference": max(differences, default=1.0),
        "answers": {n: {"ours": a, "mediapipe": b} for n, a, b in zip(names, ours, theirs, strict=True)},
    }


def report(record: dict[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The lines of the Markdown page, the record, and the files whose classes differ."""
    lines = [
        "# Finished files in MediaPipe Tasks",
        "",
        f"`ImageClassifier` of {record['mediapipe']} against this package's runtime on {record['runtime']}: for how "
        f"many photos the first class, and the first {COUNT} in their order, have the same index and name; the largest "
        "difference between two scores of a class. Written by `python benchmarks/mediapipe_classifier.py`.",
        "",
        *table_head("file", "photos", "same class", f"same {COUNT}", "scores differ by"),
    ]
    missed = []
    for name, found in record["files"].items():
        if "error" in found:
            lines.append(table_row(name, "–", "–", "–", found["error"]))
            missed.append(f"{name} does not open")
            continue
        photos, first, same = found["photos"], found["same_first"], found["same_all"]
        lines.append(table_row(name, photos, first, same, f"{found['largest_difference']:.1e}"))
        if same < photos:
            missed.append(f"{name}: other classes for {photos - same} of {photos} photos")
    return lines, record, missed


if __name__ == "__main__":
    sys.exit(main())
