"""Puts a trained checkpoint into the package: fp16 weights, measured again as they are shipped, with its card.

    python examples/embed_checkpoint.py runs/mobilevit-xxs-tiny-imagenet tiny-imagenet/ mobilevit-xxs-tiny-imagenet 10

Arguments: output folder of `mobilevit-hub train`, the data set it was trained on, name of the embedded
checkpoint, and the epochs of the checkpoint that the run started from, for the card. The row of
`presets.py` (score, size) is to be brought in line; a test compares the two.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import mobilevit_hub as mh
from mobilevit_hub.checkpoints.saving import save_checkpoint
from mobilevit_hub.data import open_images
from mobilevit_hub.training.report import training_card

BATCH = 100


def main() -> int:
    """Converts, saves, measures and writes the card."""
    run, data, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    target = Path(mh.__file__).parent / "assets" / name
    processor = mh.image_processor(run)
    trained = mh.from_pretrained(run)
    weights = {
        key: (value.half() if value.is_floating_point() else value).numpy()
        for key, value in trained.state_dict().items()
    }
    trained.config.dtype = "float32"  # what they are in memory; half precision is for the file only
    save_checkpoint(target, weights, trained.config, processor=processor)

    model, photos = mh.from_pretrained(target), open_images(data, "validation")
    best = []
    with torch.inference_mode():
        for first in tqdm(range(0, len(photos), BATCH), unit="batch"):
            batch = [photos[i] for i in range(first, min(first + BATCH, len(photos)))]
            best.append(model(**processor(batch, return_tensors="pt")).logits.topk(5).indices.numpy())
    hits = np.concatenate(best) == photos.labels[:, None]

    log = json.loads((run / "training_log.json").read_text("utf-8"))
    log |= {"earlier_epochs": int(sys.argv[4]) if len(sys.argv) > 4 else 0}
    log |= {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(axis=1).mean()), "count": len(photos)}
    card = training_card(log, model.config).replace(
        "\nPreprocessing stands in",
        "\nThe scores are those of the half-precision file. Licence of the weights: see `mobilevit-hub info "
        f"{name}`.\n\nPreprocessing stands in",
    )
    save_checkpoint(target, weights, trained.config, processor=processor, card=card)
    shutil.copy(run / "learning_curve.png", target)
    print(f"{target}: top-1 {100 * log['top1']:.2f} %, top-5 {100 * log['top5']:.2f} % on {len(photos):,} photos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
