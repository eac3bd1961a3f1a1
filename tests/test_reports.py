"""Cards, learning curves and pictures of predictions."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from pictures import noise
from PIL import Image

from mobilevit_hub.reports import draw_learning_curve, draw_predictions, markdown_text, training_card, write_json

HOSTILE = [
    "a | b",
    "<script>alert(1)</script>",
    "[click](http://x.example)",
    "![](http://x.example/pixel.png)",
    "`code`",
    "line\nbreak\r\n---\n# title",
    "\u202eright to left\u2066",
    "**bold** __under__",
    "back\\slash",
    "\x1b[31mred",
    'quote " and : colon',
    "- list",
    "%s {x} $a$",
]


def unescaped(text):
    """What a reader sees: backslashes before punctuation taken away."""
    return re.sub(r"\\([\\|`<>\[\]*_])", r"\1", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_text_shows_the_text_and_nothing_else(text):
    escaped = markdown_text(text)
    assert unescaped(escaped) == "".join(c for c in text if c.isprintable())
    assert escaped.isprintable()
    # nothing that Markdown or HTML reacts to is left without a backslash
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`<>\[\]*_]", escaped)


def test_markdown_text_of_plain_words_and_numbers_is_itself():
    assert markdown_text("golden retriever, 3.5 % (café)") == "golden retriever, 3.5 % (café)"
    assert markdown_text(0.5) == "0.5"


def log_of(**changes):
    return {
        "model": "mobilevit-xxs", "from_scratch": True, "data": "photos", "count": 400, "train_count": 1234,
        "top1": 0.75, "top5": 0.9, "recipe": {"epochs": 3, "size_schedule": ""}, "config": {"output_stride": 16},
        "command": "mobilevit-hub train photos", "seconds": 600, "steps": 5678, "machine": "1 × 2 CPU threads", **changes,
    }  # fmt: skip


def config_of(*labels):
    return SimpleNamespace(id2label=dict(enumerate(labels)), num_labels=len(labels))


def table_of(body):
    rows = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert all(len(row) == 2 for row in cells), rows
    return dict(cells)


def test_card_says_what_was_measured():
    _, header, body = training_card(log_of(), config_of("cat", "dog")).split("---\n", 2)
    table = table_of(body)
    assert table["top-1"] == "75.00 % ± 4.24 (95 % interval)"  # 1.96 · √(0.75 · 0.25 / 400)
    assert table["top-5"] == "90.00 %"
    assert table["measured on"] == "400 validation photos"
    assert table["classes"] == "2: cat, dog"
    assert table["trained on"] == "1,234 photos of photos, 5,678 steps"
    assert table["time and machine"] == "10 minutes on 1 × 2 CPU threads"
    assert table["changed config fields"] == r"output\_stride=16"
    assert table["epochs"] == "3" and "size\\_schedule" not in table
    assert "```\nmobilevit-hub train photos\n```" in body
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "mobilevit_hub"
    result = metadata["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "photos", "type": "photos"}
    assert [(m["name"], m["value"]) for m in result["metrics"]] == [("top-1", 0.75), ("top-5", 0.9)]


def test_card_is_one_that_the_hub_reads():
    from huggingface_hub import ModelCard

    card = ModelCard(training_card(log_of(), config_of("cat")))
    assert card.data.eval_results[0].metric_value == 0.75
    assert card.data.eval_results[0].metric_type == "accuracy"


def test_card_of_a_run_from_python_has_no_empty_command():
    body = training_card(log_of(command=""), config_of("cat"))
    assert "Command" not in body and "```" not in body


@pytest.mark.parametrize("top1", [0.0, 1.0])
def test_card_of_an_extreme_score(top1):
    assert f"| top-1 | {100 * top1:.2f} % ± 0.00" in training_card(log_of(top1=top1), config_of("cat"))


@pytest.mark.parametrize("text", HOSTILE)
def test_card_with_hostile_names_stays_one_card(text):
    log = log_of(data=text, model=text, command=f"mobilevit-hub train '{text}'", from_scratch=False, config={"x": text})
    card = training_card(log, config_of(text, "dog"))
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["tags"] == ["mobilevit", "image-classification"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == text
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert table_of(prose)["top-5"] == "90.00 %"
    assert not re.search(r"(?<!\\)<", prose)
    assert len(re.findall(r"(?<!\\)\]\(", prose)) == 1  # the learning curve
    assert [line for line in prose.splitlines() if line.startswith("#")][1:] == ["## Recipe"]


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
