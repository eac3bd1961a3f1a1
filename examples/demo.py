"""Classifies four real photos with the embedded checkpoint: the main job of the package, without a network.

Prints the three best labels of each photo with probability and time, and writes one picture with photos
and bars. Run it with `make demo`, or with photos of your own:

    python examples/demo.py my-photo.jpg another.png
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import mobilevit_hub as mh
from mobilevit_hub.models import Classifier
from mobilevit_hub.tasks.classification import draw_predictions

MODEL = "mobilevit-xxs-tiny-imagenet"
OUTPUT = Path("demo.png")


def main() -> int:
    """Runs the demo; returns 1 when a photo cannot be read."""
    paths = [Path(p) for p in sys.argv[1:]] or sorted((Path(__file__).parent / "photos").glob("*.jpg"))
    started = time.perf_counter()
    classifier = Classifier(MODEL)
    print(f"{MODEL}: {mh.get_preset(MODEL).params:,} parameters, opened in {time.perf_counter() - started:.1f} s")
    list(classifier.predict(paths[:1]))  # the first image pays for memory and kernels

    results = list(classifier.predict(paths, top_k=3))
    readable = [result for result in results if "error" not in result]
    for result in results:
        if "error" in result:
            print(f"\n{result['error']}")
            continue
        print(f"\n{Path(result['path']).name}  ({result['ms']:.0f} ms)")
        for prediction in result["predictions"]:
            print(f"  {100 * prediction['score']:5.1f} %  {prediction['label']}")
    if readable:
        draw_predictions([mh.load_image(r["path"]) for r in readable], readable, OUTPUT)
        median = statistics.median(r["ms"] for r in readable)
        print(f"\nmedian {median:.0f} ms per photo, from file to labels. Picture: {OUTPUT}")
    return 0 if len(readable) == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
