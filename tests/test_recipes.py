"""Recipes: the values of the papers, ranges, and size schedules."""

import math
from dataclasses import asdict, fields

import pytest

from mobilevit_hub.errors import ConfigError, InputError
from mobilevit_hub.images.sizes import evaluation_resize
from mobilevit_hub.recipes.recipe import RECIPES, RULES, Recipe, get_recipe, parse_size_schedule

IMAGENET_PHOTOS, PAPER_BATCH = 1_281_167, 1024


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("64:3", [64] * 3),
        ("64:2,96:1, 128:2 ", [64, 64, 96, 128, 128]),
        ("256", [256]),
        ("32:1,1024:1", [32, 1024]),
    ],
)
def test_size_schedule_gives_one_size_per_epoch(text, sizes):
    assert parse_size_schedule(text) == sizes
    assert Recipe(size_schedule=text).sizes == sizes


@pytest.mark.parametrize(
    "text", ["", "64:0", "31:1", "1025:1", "64:x", "x:1", "64:-1", "64:1,,96:1", "64;1", "64:1.5", "6²:1", "64:9999999"]
)
def test_wrong_size_schedule_says_which_part(text):
    with pytest.raises(
        InputError, match=r"is not pixels:epochs with 32 to 1024 pixels, such as '64:8,128:2'"
    ) as caught:
        parse_size_schedule(text)
    assert caught.value.field == "size_schedule"
    assert repr(text) in str(caught.value)


def test_sizes_and_evaluation_sizes():
    assert Recipe(epochs=3, image_size=64).sizes == [64] * 3
    assert Recipe(image_size=256).eval_sizes == (288, 256)  # Apple: short side 288, crop 256
    assert Recipe(size_schedule="64:1,96:1").eval_sizes == (108, 96)
    assert Recipe(size_schedule="64:1,96:1", eval_resize=96).eval_sizes == (96, 96)


@pytest.mark.parametrize(("size", "resize"), [(256, 288), (384, 384), (128, 144), (96, 108), (512, 576)])
def test_short_side_of_the_evaluation_is_that_of_apple(size, resize):
    assert evaluation_resize(size) == resize
    assert Recipe(image_size=size).eval_sizes == (resize, size)


RANGES = {
    "epochs": (1, 10_000), "batch_size": (1, 65_536), "image_size": (32, 1024), "eval_resize": (0, 2048),
    "learning_rate": (1e-8, 10), "final_learning_rate": (0, 10), "muon_learning_rate": (0, 10),
    "warmup_epochs": (0, 10_000), "weight_decay": (0, 10), "label_smoothing": (0, 0.99), "ema_momentum": (0, 0.99),
    "clip_norm": (0, 1e6), "crop_area": (0.001, 1), "rand_augment": (0, 14), "random_erase": (0, 1),
    "mixup": (0, 100), "cutmix": (0, 100), "seed": (0, 2**31 - 1),
}  # fmt: skip
FITTING = {"epochs": {"warmup_epochs": 0}, "warmup_epochs": {"epochs": 10_000}, "eval_resize": {"image_size": 32}}


@pytest.mark.parametrize(("name", "low", "high"), [(name, *bounds) for name, bounds in RANGES.items()])
def test_numbers_are_checked_for_range_and_type(name, low, high):
    for right in (low, high):
        assert getattr(Recipe(**{name: right, **FITTING.get(name, {})}), name) == right
    for wrong in (low - 1, high * 2 + 1, math.nan, math.inf, "3", None, True):
        with pytest.raises(ConfigError, match=f"^{name} is {wrong!r}; expected an? (number|integer) from") as caught:
            Recipe(**{name: wrong})
        assert caught.value.field == name


def test_every_field_has_a_rule():
    assert set(RULES) == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize("name", ["epochs", "batch_size", "image_size", "seed", "rand_augment", "eval_resize"])
def test_counts_are_whole(name):
    with pytest.raises(ConfigError, match="expected an integer"):
        Recipe(**{name: 64.0})


@pytest.mark.parametrize("name", ["flip", "decay_all", "bf16", "freeze_backbone"])
@pytest.mark.parametrize("wrong", ["no", 0, None])
def test_switches_are_true_or_false(name, wrong):
    with pytest.raises(ConfigError, match=f"{name} is {wrong!r}; expected true or false") as caught:
        get_recipe(**{name: wrong})
    assert caught.value.field == name


@pytest.mark.parametrize("wrong", [3, None, ["64:1"]])
def test_size_schedule_is_a_text(wrong):
    with pytest.raises(ConfigError, match="size_schedule is .*; expected a text such as '64:8,128:2'"):
        get_recipe(size_schedule=wrong)


@pytest.mark.parametrize("other", [{"epochs": 3}, {"image_size": 64}, {"epochs": 3, "image_size": 64}])
def test_schedule_and_what_it_replaces_are_refused_together(other):
    with pytest.raises(InputError, match="size_schedule is '64:3' and .* give one of the two") as caught:
        get_recipe(size_schedule="64:3", **other)
    assert caught.value.field == "size_schedule"
    assert get_recipe(size_schedule="", **other) == Recipe(**other)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.5}, "dropout"),
        ({"dropout": "0.1"}, "dropout"),
        ({"eval_resize": 100, "image_size": 128}, "eval_resize"),
        ({"epochs": 2, "warmup_epochs": 3}, "warmup_epochs"),
        ({"size_schedule": "64:1", "warmup_epochs": 2}, "warmup_epochs"),
    ],
)
def test_contradictions_are_refused(changes, field):
    with pytest.raises(ConfigError) as caught:
        Recipe(**changes)
    assert caught.value.field == field


def test_version_1_recipe_is_the_published_one():
    recipe = asdict(get_recipe("mobilevit"))
    published = {
        "epochs": 300, "learning_rate": 2e-3, "final_learning_rate": 2e-4, "weight_decay": 0.01, "decay_all": True,
        "label_smoothing": 0.1, "ema_momentum": 5e-4, "clip_norm": 0, "crop_area": 0.08, "flip": True,
        "rand_augment": 0, "random_erase": 0, "mixup": 0, "cutmix": 0, "image_size": 256,
    }  # fmt: skip
    assert {name: recipe[name] for name in published} == published
    assert recipe["warmup_epochs"] * IMAGENET_PHOTOS / PAPER_BATCH == pytest.approx(3_000, rel=0.01)
    assert recipe["batch_size"] * 8 == PAPER_BATCH


def test_version_2_recipe_is_the_published_one():
    recipe = asdict(get_recipe("mobilevitv2"))
    published = {
        "epochs": 300, "learning_rate": 7.5e-3, "final_learning_rate": 7.5e-4, "weight_decay": 0.013,
        "decay_all": False, "label_smoothing": 0.1, "ema_momentum": 5e-4, "clip_norm": 10, "crop_area": 0.08,
        "flip": True, "rand_augment": 2, "random_erase": 0.25, "mixup": 0.2, "cutmix": 1.0, "image_size": 256,
    }  # fmt: skip
    assert {name: recipe[name] for name in published} == published
    assert recipe["warmup_epochs"] * IMAGENET_PHOTOS / PAPER_BATCH == pytest.approx(20_000, rel=0.01)
    assert recipe["batch_size"] * 8 == PAPER_BATCH


def test_recipe_with_changes():
    recipe = get_recipe("mobilevitv2", epochs=20, image_size=384)
    assert (recipe.epochs, recipe.image_size, recipe.cutmix) == (20, 384, 1.0)
    assert RECIPES["mobilevitv2"].epochs == 300
    assert get_recipe() == Recipe()


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"'mobilenet'; expected one of finetune, mobilevit, mobilevitv2"):
        get_recipe("mobilenet")
    with pytest.raises(InputError, match="no field 'lr'"):
        get_recipe(lr=1)


def test_every_field_has_a_help_text():
    assert all(f.metadata["help"] for f in fields(Recipe))
