"""Model cards: true, accepted by huggingface_hub, and not to be changed by the names that stand in them."""

import ast
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from mobilevit_hub.errors import ConfigError
from mobilevit_hub.hub.presets import APPLE_LICENSE, get_preset, list_presets
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config, config_from_dict
from mobilevit_hub.publishing.cards import check_card, checkpoint_card, markdown_text, preset_metadata
from mobilevit_hub.training.report import training_card

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
    return SimpleNamespace(model_type="mobilevit", id2label=dict(enumerate(labels)), num_labels=len(labels))


def table_of(body):
    rows = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert all(len(row) == 2 for row in cells), rows
    return dict(cells)


def test_card_says_what_was_measured():
    _, header, body = training_card(log_of(), config_of("cat", "dog")).split("---\n", 2)
    table = table_of(body)
    z = 1.959964  # Wilson's interval: where |share - p| = z · √(p · (1 - p) / n)
    ends = np.roots([400 + z * z, -(2 * 400 * 0.75 + z * z), 400 * 0.75**2])
    assert table["top-1"] == f"75.00 % (95 % interval {100 * min(ends):.2f} to {100 * max(ends):.2f})"
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
    assert card.data.tags == ["mobilevit", "image-classification", "transformers", "keras"]
    assert card.data.eval_results[0].metric_value == 0.75
    assert card.data.eval_results[0].metric_type == "accuracy"


def test_card_of_a_run_from_python_has_no_empty_command():
    body = training_card(log_of(command=""), config_of("cat"))
    assert "Command" not in body and "```" not in body


@pytest.mark.parametrize(("top1", "interval"), [(0.0, "0.00 to 0.95"), (1.0, "99.05 to 100.00")])
def test_an_extreme_score_is_not_certain(top1, interval):  # z² / (400 + z²) = 0.0095
    text = f"| top-1 | {100 * top1:.2f} % (95 % interval {interval}) |"
    assert text in training_card(log_of(top1=top1), config_of("cat"))


@pytest.mark.parametrize("text", HOSTILE)
def test_card_with_hostile_names_stays_one_card(text):
    log = log_of(data=text, model=text, command=f"mobilevit-hub train '{text}'", from_scratch=False, config={"x": text})
    card = training_card(log, config_of(text, "dog"))
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["tags"] == ["mobilevit", "image-classification", "transformers", "keras"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == text
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert table_of(prose)["top-5"] == "90.00 %"
    assert not re.search(r"(?<!\\)<", prose)
    assert len(re.findall(r"(?<!\\)\]\(", prose)) == 1  # the learning curve
    assert [line for line in prose.splitlines() if line.startswith("#")][1:] == ["## Recipe"]


# --------------------------------------------------------------------------------------------------
# Converted and published checkpoints
# --------------------------------------------------------------------------------------------------


def card_of_preset(name):
    preset = get_preset(name)
    config = config_from_dict({"model_type": preset.model_type, **preset.config, "num_labels": preset.num_labels})
    processor = processor_for(preset.resize, preset.crop, preset.interpolation, preset.channel_order)
    facts = [("source", "https://example.org/a_b.pt"), ("sha256", "0" * 64)]
    return checkpoint_card(
        config, name=name, facts=facts, processor=processor, place="me/new", **preset_metadata(preset)
    )  # fmt: skip


def test_card_of_apples_weights():
    card = ModelCard(card_of_preset("mobilevit-s"))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("mobilevit_hub", "image-classification")
    assert {"mobilevit", "transformers", "keras"} <= set(data.tags)
    assert (data.license, data.license_name) == ("other", "apple-sample-code-license")
    assert data.license_link == "https://github.com/apple/ml-cvnets/blob/main/LICENSE"
    assert (data.base_model, data.datasets) == ("apple/mobilevit-small", ["imagenet-1k"])
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_type) == ("accuracy", 0.783, "imagenet-1k")
    assert "CVNets" in score.source_name and score.source_url == "https://github.com/apple/ml-cvnets"
    table = table_of(card.text)
    assert table["source"] == r"https://example.org/a\_b.pt" and table["sha256"] == "0" * 64
    assert table["published top-1"].startswith("78.30 % on imagenet-1k")
    assert "apple-sample-code-license" in table["licence of the weights"]
    assert "# mobilevit-s" in card.text.splitlines()
    for step in ("shorter side of 288 pixels (bilinear)", "centre to 256 × 256", "blue, green, red", "divide by 255"):
        assert step in card.text


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_metadata_of_every_published_checkpoint(preset):
    found = preset_metadata(preset)
    assert found["license"] == "other"
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", found["license_name"])  # the Hub asks for an identifier
    assert bool(found["license_link"]) == (preset.license == APPLE_LICENSE)
    assert found["base_model"] == (preset.transformers_id or preset.timm_id)
    assert [round(100 * s.metric_value, 4) for s in found["scores"]] == ([preset.score] if preset.score else [])
    assert {s.task_type for s in found["scores"]} <= {"image-classification", "image-segmentation", "object-detection"}


def test_datasets_name_the_pretraining():
    assert preset_metadata(get_preset("mobilevitv2-1.5-in22k"))["datasets"] == ["imagenet-1k", "imagenet-22k"]
    assert "imagenet-22k" not in card_of_preset("mobilevitv2-1.5")


def test_nothing_is_claimed_that_is_not_known():
    card = ModelCard(checkpoint_card(MobileViTV2Config(num_labels=3), name="mine", facts=[("classes", 3)]))
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "mobilevitv2" in card.data.tags
    assert set(table_of(card.text)) == {"measure", "---", "classes"}
    assert "preprocessor_config.json" in card.text


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    ast.parse(code)
    return code


def test_lines_that_load():
    code = code_of(card_of_preset("mobilevit-s"))
    assert "mh.from_pretrained('me/new')" in code and "mh.from_pretrained('me/new', framework=\"tf\")" in code
    assert "transformers.AutoModelForImageClassification.from_pretrained('me/new')" in code
    features = MobileViTConfig(architectures=["MobileViTModel"])
    card = checkpoint_card(features, name="a", facts=[], place="me/new")
    assert "transformers.AutoModel.from_pretrained" in code_of(card) and 'task="features"' in code_of(card)
    assert ModelCard(card).data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize("architectures", [[3], [None], 3, {"a": 1}, "text", []])
def test_a_config_that_names_no_class(architectures):
    card = checkpoint_card(MobileViTConfig(architectures=architectures), name="a", facts=[])
    assert ModelCard(card).data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("config", [
    MobileViTConfig(n_attn_blocks=[1, 1, 1]), MobileViTConfig(use_fusion=False), MobileViTV2Config(attn_norm="layer"),
])  # fmt: skip
def test_stock_transformers_is_not_promised_what_it_cannot_build(config):
    assert "transformers" not in code_of(checkpoint_card(config, name="a", facts=[]))


@pytest.mark.parametrize(("options", "words"), [
    ({"keep_aspect": False, "crop": None}, ["Resize to 512 × 512 pixels (bicubic)", "red, green, blue"]),
    ({"crop": 448}, ["shorter side of 512 pixels", "crop the centre to 448 × 448"]),
])  # fmt: skip
def test_preprocessing_in_words(options, words):
    processor = processor_for(512, options.pop("crop"), "bicubic", "rgb", **options)
    card = checkpoint_card(MobileViTConfig(), name="a", facts=[], processor=processor)
    assert all(word in card for word in words), card
    assert ("crop" in card.split("## Preprocessing")[1]) == processor.do_center_crop


@pytest.mark.parametrize(
    "text", [*HOSTILE, "a\n---\nb", "```\n# title", "' + evil() + '", "x: &a [*a]", "!!python/none"]
)
def test_hostile_names_change_nothing(text):
    card = checkpoint_card(
        MobileViTConfig(), name=text, facts=[(text, text)], license="other", license_name=text, license_link=text,
        datasets=[text], base_model=text, place=text,
    )  # fmt: skip
    data = ModelCard(card).data
    assert data.tags == ["mobilevit", "image-classification", "transformers", "keras"]
    assert (data.license_name, data.license_link, data.datasets, data.base_model) == (text, text, [text], text)
    body = ModelCard(card).text
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert [line.split()[0] for line in prose.splitlines() if line.startswith("#")] == ["#", "##", "##"]
    assert len(table_of(prose)) in (4, 3) and not re.search(r"(?<!\\)[<\[]", prose.replace("[0, 1]", ""))
    calls = [node for node in ast.walk(ast.parse(code_of(body))) if isinstance(node, ast.Call)]
    places = [call.args[0].value for call in calls if getattr(call.func, "attr", "") == "from_pretrained"]
    assert places and set(places) == {text.replace("`", "")}


# --------------------------------------------------------------------------------------------------
# Cards of others
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "", "# A card", "---\ntags: [x]\n---\n# A card", "---\n---\nNothing", "---\nlicense: mit\n---", "text\n\n---\n\nmore",
])  # fmt: skip
def test_cards_that_the_hub_takes(text):
    check_card(text, "README.md")


@pytest.mark.parametrize(("text", "word"), [
    ("---\ntags: [x\n---\n# A", "expected"), ("---\n- a\n---\n# A", "dict"), ("---\ntags: x\n# A card", "missing"),
    ("---\nmodel-index: 5\n---\n", "model_index"), ("---\n1: 2\n---\n", "strings"), ("---\na: b: c\n---\n", "mapping"),
    ("---\nx: !!python/object/apply:os.getcwd []\n---\n", "constructor"), ("---\ntags: 5\n---\n", "iterable"),
])  # fmt: skip
def test_cards_with_bad_metadata(text, word):
    with pytest.raises(ConfigError, match=f"me/README.md.*{word}") as caught:
        check_card(text, "me/README.md")
    assert "\n" not in str(caught.value)
