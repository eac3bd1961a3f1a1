"""Whether photos wait for the network or the network for photos: `evaluate` and `predict` on a folder.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --networks mobilevit-s --photos 200

While the network computes on one processor, threads prepare the next photos on the others. So a folder should take as
long as the slower of the two takes alone: preparing in one thread, or the network with the processors that are left.
The four take turns. Writes `pipeline.md` and `.json` into `benchmarks/results/`, and returns 1 when a target is missed.
Takes minutes, on a machine with two processors that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from model_files import write_weights
from processes import FOLDER, machine, table_head, table_row, write_results

NETWORKS = ["mobilevit-xxs", "mobilevit-s", "mobilevitv2-1.0"]
PHOTO = (500, 375)
CLASSES = 4
BATCH = 32
SHARE = 0.85


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--photos", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "pipeline.md")
    options = parser.parse_args(arguments)

    record: dict[str, Any] = {"machine": machine(1, 256), "photos": options.photos, "networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        names = write_photos(photos, options.photos)
        for network in options.networks:
            print(f"{network} …", file=sys.stderr, flush=True)
            checkpoint = Path(folder, network)
            write_checkpoint(network, checkpoint)
            record["networks"][network] = measure(checkpoint, photos, names, options.rounds)
    return write_results(options.output, *report(record))


def write_photos(folder: Path, count: int) -> list[Path]:
    """Photos of the usual size as JPEG, in a folder for each class, cut out of those that the package carries."""
    from PIL import Image

    from mobilevit_hub.conversion.tflite.measurement import check_photos

    pictures = [Image.fromarray(pixels).resize(PHOTO, Image.Resampling.BICUBIC) for pixels in check_photos()]
    paths = []
    for i in range(count):
        path = folder / f"class {i % CLASSES}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[i % len(pictures)].save(path, quality=90)
        paths.append(path)
    return paths


def write_checkpoint(network: str, folder: Path) -> None:
    """Random weights with the preprocessing of the published ones, for the classes of the photos."""
    from mobilevit_hub.images.processor import image_processor

    labels = {i: f"class {i}" for i in range(CLASSES)}
    write_weights(network, folder, id2label=labels, label2id={name: i for i, name in labels.items()})
    image_processor(network).save_pretrained(folder)


def measure(checkpoint: Path, photos: Path, names: list[Path], rounds: int) -> dict[str, list[float]]:
    """Photos a second, one number a round."""
    import mobilevit_hub as mh
    from mobilevit_hub.data.pipeline import default_workers, room_for
    from mobilevit_hub.prediction import open_classifier
    from mobilevit_hub.tasks.classification import predict_each

    classifier = open_classifier(checkpoint)
    batch = np.concatenate([classifier.prepare(name) for name in names[:BATCH]])

    def network(size: int) -> None:
        with room_for(default_workers()):
            for start in range(0, len(names), size):
                classifier.probabilities(batch[:size] if size > 1 else batch[start % BATCH][None])

    turns: dict[str, Callable[[], Any]] = {
        "preparing alone": lambda: [classifier.prepare(name) for name in names],
        f"network alone, batch {BATCH}": lambda: network(BATCH),
        "network alone, batch 1": lambda: network(1),
        "evaluate": lambda: mh.evaluate(checkpoint, photos, batch_size=BATCH, progress=False),
        "predict": lambda: list(predict_each(classifier, names, 5)),
    }
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in list(turns.items())[:: 1 if i % 2 else -1]:
            started = time.perf_counter()
            found = turn()
            seconds = time.perf_counter() - started
            if i:  # evaluate opens the checkpoint first, which is not its rate
                own = found["images_per_second"] if name == "evaluate" else len(names) / seconds
                rates[name].append(own)
    return rates


def report(record: dict[str, Any]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The lines of the Markdown page, the record, and the targets that were missed."""
    about, missed = record["machine"], []
    lines = [
        "# A folder of photos: preparing and network at the same time",
        "",
        f"{about['processor']}, {about['cores']} cores; {record['photos']} JPEG photos, {PHOTO[0]}×{PHOTO[1]}, "
        "PyTorch, float32. Photos a second, median of the rounds: prepared in one thread; computed with the other "
        f"processors, {BATCH} or 1 at a time; both at once by `evaluate` and `predict`; and the share of the slower of "
        "the two. Written by `python benchmarks/pipeline.py`.",
        "",
        *table_head(
            "network", "prepare", f"network, {BATCH}", "`evaluate`", "share", "network, 1", "`predict`", "share"
        ),
    ]
    for network, rates in record["networks"].items():
        middle = {name: statistics.median(values) for name, values in rates.items()}
        cells = [network, f"{middle['preparing alone']:.0f}"]
        for batch, whole in ((BATCH, "evaluate"), (1, "predict")):
            alone = middle[f"network alone, batch {batch}"]
            share = middle[whole] / min(alone, middle["preparing alone"])
            cells += [f"{alone:.0f}", f"{middle[whole]:.0f}", f"{share:.2f}"]
            if share < SHARE:
                missed.append(f"{network}, {whole} {share:.2f} (≥ {SHARE})")
        lines.append(table_row(*cells))
    return lines, record, missed


if __name__ == "__main__":
    sys.exit(main())
