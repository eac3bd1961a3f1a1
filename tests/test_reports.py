"""Learning curves and pictures of predictions."""

import numpy as np
from pictures import noise
from PIL import Image

from mobilevit_hub.files import write_json
from mobilevit_hub.tasks.classification import draw_predictions
from mobilevit_hub.training.report import draw_learning_curve


def history(epochs=5):
    records = []
    for epoch in range(1, epochs + 1):
        records += [{"epoch": epoch - 0.5, "loss": 5 / epoch}, {"epoch": epoch, "eval_top1": 0.1 * epoch,
                                                               "eval_top5": 0.15 * epoch}]  # fmt: skip
    return records


def pixels_of(file):
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def near(pixels, colour):
    return int((np.abs(pixels - colour).max(axis=2) < 8).sum())


BLUE, ORANGE, GREY = (0x25, 0x63, 0xEB), (0xEA, 0x58, 0x0C), (0x6B, 0x72, 0x80)


def test_learning_curve_draws_loss_and_both_scores(tmp_path):
    draw_learning_curve(history(), tmp_path / "curve.png")
    pixels = pixels_of(tmp_path / "curve.png")
    assert pixels.shape == (480, 960, 3)
    assert all(near(pixels, colour) > 100 for colour in (BLUE, ORANGE, GREY))
    draw_learning_curve([r for r in history() if "loss" in r], tmp_path / "loss.png")
    assert near(pixels_of(tmp_path / "loss.png"), ORANGE) == 0


def test_equal_data_gives_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        draw_learning_curve(history(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_learning_curve_of_an_empty_run_can_be_drawn(tmp_path):
    draw_learning_curve([], tmp_path / "curve.png")
    assert pixels_of(tmp_path / "curve.png").std() > 5


def result(path, *scores, label="kind"):
    predictions = [{"label": f"{label} {i}", "index": i, "score": s} for i, s in enumerate(scores)]
    return {"path": path, "predictions": predictions, "ms": 12.3}


def test_predictions_are_photos_above_bars(tmp_path):
    photos = [Image.new("RGB", (60, 40), (10, 200, 30)), Image.fromarray(noise(50, 50))]
    results = [result("a.png", 0.9, 0.1), result("b.png", 0.5, 0.3, 0.2)]
    draw_predictions(photos, results, tmp_path / "picture.png")
    pixels = pixels_of(tmp_path / "picture.png")
    assert pixels.shape == (624, 768, 3)
    left, right = pixels[:, :384], pixels[:, 384:]
    assert near(left, (10, 200, 30)) > 10_000 and near(right, (10, 200, 30)) < 100
    assert near(left, BLUE) > 2_000 and near(right, BLUE) > 2_000
    # the bars of 100 % in total
    draw_predictions(photos, [result("a.png", 0.1, 0.05), result("b.png", 0.1)], tmp_path / "small.png")
    assert near(pixels_of(tmp_path / "small.png"), BLUE) < 0.3 * near(pixels, BLUE)


def test_one_photo_with_hostile_names(tmp_path):
    entry = result("folder/$\\frac{$_^.png", 0.6, label="$x_{$ <b>")
    draw_predictions([Image.fromarray(noise())], [entry], tmp_path / "picture.png")
    assert pixels_of(tmp_path / "picture.png").std() > 20


def test_write_json_is_sorted_and_readable(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 0.5], "a": "café"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": "café",\n  "b": [\n    1,\n    0.5\n  ]\n}\n'
