"""Training: what is learnt, what is written, and that a killed run continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from networks import STOCK_MODELS, TINY, tiny
from PIL import Image
from safetensors.torch import load_file
from shapes import CLASSES, TRAIN_COUNT, VALIDATION_COUNT, save_shapes, shape

import mobilevit_hub as mh
from mobilevit_hub.data.opening import open_images
from mobilevit_hub.errors import ImageError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.pt.training.trainer import RecipeTrainer, TrainingImages
from mobilevit_hub.recipes.recipe import get_recipe
from mobilevit_hub.recipes.run import last_complete_checkpoint
from mobilevit_hub.training.run import starting_network, train

pytestmark = pytest.mark.torch

SMALL = {"epochs": 4, "batch_size": 16, "image_size": 32, "learning_rate": 4e-3, "warmup_epochs": 1.0}


def small(changes):
    """Fields of a quick recipe; a size schedule stands in the place of what it replaces."""
    replaced = ("epochs", "image_size") if "size_schedule" in changes else ()
    return {name: value for name, value in {**SMALL, **changes}.items() if name not in replaced}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


def run(photos, output, *, model="mobilevit-xxs", save_steps=500, resume=False, from_scratch=True, validation=None,
        **changes):  # fmt: skip
    config = TINY[1] if from_scratch and model == "mobilevit-xxs" else {}
    return train(
        photos,
        output,
        model=model,
        from_scratch=from_scratch,
        recipe=get_recipe(**small(changes)),
        config=config,
        validation=validation,
        resume=resume,
        save_steps=save_steps,
        progress=False,
        command="mobilevit-hub train shapes",
    )


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """Folder and log of a run that learns the shapes."""
    output = tmp_path_factory.mktemp("run") / "model"
    return output, run(photos, output, epochs=20, crop_area=0.6)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- what is learnt and written ------------------------------------------------------------------------------------


@pytest.mark.alone
def test_classes_are_learnt(trained):
    _, log = trained
    losses = [record["loss"] for record in log["history"] if "loss" in record]
    assert losses[-1] < 0.75 * losses[0]
    assert log["top1"] >= 0.9  # chance: 0.33
    assert (log["top5"], log["count"], log["train_count"]) == (1.0, VALIDATION_COUNT, TRAIN_COUNT)
    assert log["steps"] == 20 * TRAIN_COUNT // 16


@pytest.mark.alone
def test_folder_holds_everything(trained):
    output, _ = trained
    assert {path.name for path in output.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training_log.json",
        "learning_curve.png", "checkpoints",
    }  # fmt: skip


def test_folder_classifies_and_names_the_classes(trained):
    output, _ = trained
    for name in CLASSES:
        results = mh.predict([shape(name, seed) for seed in range(2000, 2004)], output, top_k=3)
        assert sum(result["predictions"][0]["label"] == name for result in results) >= 3
    assert mh.from_pretrained(output).config.id2label == dict(enumerate(CLASSES))
    processor = mh.image_processor(output)
    assert (processor.channel_order, processor.interpolation) == ("rgb", "bilinear")
    assert dict(processor.size) == {"shortest_edge": 36}
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (32, 32)


@pytest.mark.alone
def test_scores_are_those_of_the_saved_files(trained, photos):
    output, log = trained
    held_out = open_images(photos, "validation")
    results = mh.predict([held_out[i] for i in range(len(held_out))], output, top_k=1)
    hits = [result["predictions"][0]["index"] == label for result, label in zip(results, held_out.labels, strict=True)]
    assert log["top1"] == pytest.approx(np.mean(hits))


def test_stock_transformers_loads_the_folder_and_agrees(trained):
    output, _ = trained
    stock, report = STOCK_MODELS["mobilevit"][1].from_pretrained(output, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(stock.eval()(pixels).logits, mh.from_pretrained(output)(pixels).logits, atol=1e-4)


def test_log_file_is_what_is_returned(trained):
    output, log = trained
    saved = json.loads((output / "training_log.json").read_text())
    assert saved == json.loads(json.dumps(log))
    evaluations = [record for record in saved["history"] if "eval_top1" in record]
    assert len(evaluations) == 20 + 1
    assert evaluations[-1]["eval_top1"] == log["top1"]
    assert saved["recipe"]["epochs"] == 20
    assert saved["seconds"] >= saved["history"][-1]["seconds"] >= saved["history"][0]["seconds"]


def test_card_has_the_numbers_of_the_log(trained, photos):
    output, log = trained
    _, header, body = (output / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["pipeline_tag"] == "image-classification"
    metrics = {m["name"]: m["value"] for m in header["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"top-1": log["top1"], "top-5": log["top5"]}
    for part in (
        f"| top-1 | {100 * log['top1']:.2f} %",
        f"| measured on | {VALIDATION_COUNT} validation photos |",
        "| classes | 3: circle, square, stripes |",
        f"| trained on | {TRAIN_COUNT} photos of {photos.name}, {log['steps']} steps |",
        "| started from | random weights |",
        "mobilevit-hub train shapes",
        "| learning\\_rate | 0.004 |",
        "![learning curve](learning_curve.png)",
    ):
        assert part in body
    assert str(photos) not in body  # no path of this machine


def test_learning_curve_shows_something(trained):
    with Image.open(trained[0] / "learning_curve.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 600
    for colour in ((0x25, 0x63, 0xEB), (0xEA, 0x58, 0x0C), (0x6B, 0x72, 0x80)):  # top-1, top-5, loss
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 50


@pytest.mark.parametrize("model", ["mobilevit-xxs", "mobilevitv2-0.5"])
def test_full_networks_train_at_growing_sizes(photos, tmp_path, model):
    seen = []
    data = TrainingImages.__getitem__

    def spy(self, key):
        pixels = data(self, key)
        seen.append(pixels[0].shape)
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingImages, "__getitem__", spy)
        log = train(
            photos, tmp_path / "m", model=model, from_scratch=True, progress=False,
            recipe=get_recipe(size_schedule="32:1,64:1", batch_size=24),
        )  # fmt: skip
    assert seen == [(32, 32, 3)] * 48 + [(64, 64, 3)] * 48
    assert mh.image_processor(tmp_path / "m").crop_size["height"] == 64
    assert mh.from_pretrained(tmp_path / "m").config.image_size == 64
    assert log["steps"] == 4


def test_training_shows_progress_on_stderr_only(photos, tmp_path, capsys):
    train(
        photos, tmp_path / "m", from_scratch=True, recipe=get_recipe(**{**SMALL, "epochs": 1}), config=TINY[1]
    )  # fmt: skip
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1: top-1" in captured.err
    run(photos, tmp_path / "quiet", epochs=1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- options of the recipe -----------------------------------------------------------------------------------------


def trainer_of(photos, network, tmp_path, **changes):
    """A trainer as `train` builds it, for a network of three classes."""
    recipe = get_recipe(**{**SMALL, **changes})
    images = open_images(photos)
    return RecipeTrainer(
        recipe,
        3,
        model=network,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False, label_names=["labels"],
            per_device_train_batch_size=recipe.batch_size, num_train_epochs=1, max_grad_norm=recipe.clip_norm,
            disable_tqdm=True, bf16=recipe.bf16, save_strategy="no", logging_steps=1,
        ),
        train_dataset=TrainingImages(images, recipe, "rgb", "bilinear"),
    )  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("decay_all", [False, True])
def test_norms_and_biases_are_decayed_only_on_request(photos, tmp_path, version, decay_all):
    network = tiny(version, num_labels=3).float()
    trainer = trainer_of(photos, network, tmp_path, decay_all=decay_all, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.05 if decay_all or parameter.dim() > 1 else 0.0), name


def test_muon_gets_matrices_and_adamw_the_rest(photos, tmp_path):
    network = tiny(1, num_labels=3).float()
    trainer = trainer_of(photos, network, tmp_path, muon_learning_rate=0.02)
    groups = trainer.create_optimizer().param_groups
    kinds = {id(p): (group["muon"], group["lr"]) for group in groups for p in group["params"]}
    parameters = dict(network.named_parameters())
    assert kinds[id(parameters["mobilevit.conv_stem.convolution.weight"])] == (False, 4e-3)
    assert kinds[id(parameters["classifier.weight"])] == (False, 4e-3)
    assert kinds[id(parameters["mobilevit.conv_1x1_exp.convolution.weight"])] == (True, 0.02)


def test_saved_weights_are_the_moving_average(photos, tmp_path):
    after_steps = []
    step = RecipeTrainer.training_step

    def record(self, model, inputs, count=None):
        after_steps.append({k: v.clone().double() for k, v in self.model.state_dict().items()})
        return step(self, model, inputs, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", record)
        run(photos, tmp_path / "ema", epochs=2, ema_momentum=0.2)
    run(photos, tmp_path / "plain", epochs=2)
    plain = {name: tensor.double() for name, tensor in weights(tmp_path / "plain").items()}
    states = [*after_steps[1:], plain]  # the state before step n + 1 is that after step n
    average = states[0]
    for state in states[1:]:
        average = {name: 0.8 * average[name] + 0.2 * state[name] for name in average}
    saved = weights(tmp_path / "ema")
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), average[name], rtol=1e-4, atol=1e-6), name
    difference = (saved["classifier.weight"] - plain["classifier.weight"]).abs().max()
    assert difference > 1e-4


def test_soft_labels_reach_the_loss(photos, tmp_path):
    network = tiny(1, num_labels=3).float().train()
    trainer = trainer_of(photos, network, tmp_path, mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    inputs = next(iter(trainer.get_train_dataloader()))
    assert inputs["labels"].shape == (16, 3)
    assert inputs["labels"].sum(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    assert (inputs["labels"].max(dim=1).values < 0.999).sum() > 4
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(network, inputs, return_outputs=True)
    targets = 0.9 * inputs["labels"] + 0.1 / 3
    expected = -(targets * outputs["logits"].log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_label_smoothing_is_for_training_only(photos, tmp_path):
    network = tiny(1, num_labels=3).float().eval()
    trainer = trainer_of(photos, network, tmp_path, label_smoothing=0.1)
    inputs = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(network, inputs, return_outputs=True)
    log_probabilities = outputs["logits"].log_softmax(dim=1)
    assert loss.item() == pytest.approx(-log_probabilities[range(16), inputs["labels"]].mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{"mixup": 0.2, "cutmix": 1.0}, {"rand_augment": 2}, {"muon_learning_rate": 0.02}])
def test_augmented_runs_finish(photos, tmp_path, options):
    log = run(photos, tmp_path / "m", epochs=1, **options)
    assert np.isfinite([record["loss"] for record in log["history"] if "loss" in record]).all()


def test_bf16_learns_and_saves_float32(photos, tmp_path):
    log = run(photos, tmp_path / "m", epochs=8, bf16=True)
    losses = [record["loss"] for record in log["history"] if "loss" in record]
    assert losses[-1] < losses[0]
    assert {t.dtype for t in weights(tmp_path / "m").values()} == {torch.float32, torch.int64}


# --- fine-tuning ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint of other classes, in BGR order and with a bicubic filter."""
    folder = tmp_path_factory.mktemp("start") / "bgr"
    tiny(1, num_labels=5).float().save_pretrained(folder, processor=processor_for(40, 32, "bicubic", "bgr"))
    return folder


@pytest.fixture(scope="module")
def frozen(photos, start, tmp_path_factory):
    output = tmp_path_factory.mktemp("frozen") / "model"
    with pytest.warns(MobileViTHubWarning, match="classifier for 3 labels is new"):
        log = run(photos, output, model=str(start), from_scratch=False, freeze_backbone=True, dropout=0.1)
    return output, log


def test_frozen_backbone_does_not_change_at_all(frozen, start):
    before, after = weights(start), weights(frozen[0])
    assert before.keys() == after.keys()
    changed = {
        name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])
    }
    assert changed == {"classifier.weight", "classifier.bias"}


def test_fine_tuning_keeps_channel_order_and_filter(frozen):
    processor = mh.image_processor(frozen[0])
    assert (processor.channel_order, processor.interpolation) == ("bgr", "bicubic")
    saved = json.loads((frozen[0] / "preprocessor_config.json").read_text())
    assert (saved["do_flip_channel_order"], saved["resample"]) == (True, 3)


def test_card_names_the_start_without_its_path(frozen, start):
    card = (frozen[0] / "README.md").read_text()
    assert "| started from | the checkpoint bgr |" in card
    assert str(start) not in card
    assert frozen[1]["model"] == "bgr"


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_training_photos_have_the_channel_order_of_the_checkpoint(photos, order):
    recipe = get_recipe(**SMALL, crop_area=1.0, flip=False)
    images = open_images(photos)
    pixels, label, _ = TrainingImages(images, recipe, order, "bilinear")[32, 0, 7]
    middle = pixels[8:24, 8:24].mean(axis=(0, 1))
    assert CLASSES[label] == "circle"  # red
    assert middle.argmax() == {"rgb": 0, "bgr": 2}[order]


def test_fine_tuning_starts_from_the_weights(photos, trained, tmp_path):
    log = run(photos, tmp_path / "m", model=str(trained[0]), from_scratch=False, epochs=1, learning_rate=1e-6,
              warmup_epochs=0.0)  # fmt: skip
    assert log["top1"] >= 0.9


# --- the network that is built -------------------------------------------------------------------------------------


def build(model, from_scratch=True, **changes):
    """The network, interpolation and channel order."""
    make, *look = starting_network(
        str(model), list(CLASSES), framework="pt", from_scratch=from_scratch, recipe=get_recipe(**changes), changes={}
    )
    return make(), *look


@pytest.mark.parametrize(("model", "before_classifier"), [("mobilevit-xxs", 0.3), ("mobilevitv2-0.5", None)])
def test_dropout_is_set_where_the_version_has_it(model, before_classifier):
    config, default = (build(model, dropout=dropout)[0].config for dropout in (0.3, -1))
    assert config.hidden_dropout_prob == 0.3 != default.hidden_dropout_prob
    expected = default.classifier_dropout_prob if before_classifier is None else before_classifier
    assert config.classifier_dropout_prob == expected


@pytest.mark.parametrize(("version", "interpolation"), [(1, "bilinear"), (2, "bicubic")])
def test_from_scratch_builds_like_a_folder(tmp_path, version, interpolation):
    tiny(version, num_labels=5).float().save_pretrained(tmp_path / "like")
    network, *look = build(tmp_path / "like")
    own, like = network.state_dict(), weights(tmp_path / "like")
    assert {k: v.shape for k, v in own.items() if "classifier" not in k} == {
        k: v.shape for k, v in like.items() if "classifier" not in k
    }
    assert network.config.id2label == dict(enumerate(CLASSES))
    assert look == [interpolation, "rgb"]
    name = next(k for k, v in like.items() if v.dim() == 4)
    assert not torch.equal(own[name], like[name])


@pytest.mark.parametrize("from_scratch", [True, False])
@pytest.mark.parametrize(
    ("model", "task"),
    [("deeplabv3-mobilevit-s-voc", "semantic-segmentation"), ("ssdlite-mobilevit-s", "object-detection")],
)
def test_presets_of_other_tasks_are_refused(model, task, from_scratch):
    with pytest.raises(InputError, match=f"{model!r} is for {task}; expected the name of a classifier"):
        build(model, from_scratch)


def test_erased_rectangles_are_in_the_training_photos(photos):
    images = open_images(photos)
    whole, erased = (
        [TrainingImages(images, get_recipe(random_erase=p, flip=False, crop_area=1.0), "rgb", "bilinear")[32, 0, seed][0]
         for seed in range(60)] for p in (0.0, 0.5)
    )  # fmt: skip
    differ = [i for i in range(60) if not np.array_equal(whole[i], erased[i])]
    assert 18 < len(differ) < 42
    for i in differ:
        changed = (whole[i] != erased[i]).any(axis=2)
        assert not erased[i][changed].any()


# --- interruptions -------------------------------------------------------------------------------------------------

EVERYTHING = {"ema_momentum": 0.1, "dropout": 0.1, "mixup": 0.2, "cutmix": 1.0, "rand_augment": 2, "random_erase": 0.25,
              "muon_learning_rate": 0.01, "size_schedule": "32:1,48:3"}  # fmt: skip

KILLED_RUN = """
import json, os, signal, sys
from mobilevit_hub.pt.training.trainer import RecipeTrainer
from mobilevit_hub.recipes import get_recipe
from mobilevit_hub.training import train

save = RecipeTrainer._save_rng_state

def killed(self, folder):
    if self.state.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)

RecipeTrainer._save_rng_state = killed
options = json.loads(sys.argv[1])
train(recipe=get_recipe(**options.pop("recipe")), **options)
"""


@pytest.fixture(scope="module")
def uninterrupted(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "model"
    return output, run(photos, output, save_steps=4, **EVERYTHING)


@pytest.fixture(scope="module")
def killed(photos, tmp_path_factory):
    """Output of a process that was killed while it wrote its second checkpoint."""
    output = tmp_path_factory.mktemp("killed") / "model"
    options = {
        "data": str(photos), "output": str(output), "model": "mobilevit-xxs", "from_scratch": True, "config": TINY[1],
        "save_steps": 4, "progress": False, "recipe": small(EVERYTHING),
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, json.dumps(options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    return output


def test_killed_run_resumes_to_exactly_the_same_weights(photos, killed, uninterrupted):
    checkpoints = killed / "checkpoints"
    assert not (killed / "config.json").exists()
    assert (checkpoints / "checkpoint-8" / "model.safetensors").exists()  # begun, but not complete
    assert last_complete_checkpoint(checkpoints)[0] == checkpoints / "checkpoint-4"

    with pytest.raises(InputError, match="holds an earlier run; continue it with --resume"):
        run(photos, killed, save_steps=4, **EVERYTHING)
    with pytest.raises(InputError, match=r"was started with learning_rate=0\.004; resume it with the same options"):
        run(photos, killed, resume=True, **{**EVERYTHING, "learning_rate": 0.1})
    with pytest.raises(InputError, match=f"was started with data={str(photos)!r}; resume"):
        run(photos / "train", killed, resume=True, **EVERYTHING)
    with pytest.raises(InputError, match="was started with validation=None; resume"):
        run(photos, killed, resume=True, validation=photos, **EVERYTHING)

    log = run(photos, killed, save_steps=4, resume=True, **EVERYTHING)
    assert log["steps"] == uninterrupted[1]["steps"] == 12
    assert log["top1"] == uninterrupted[1]["top1"]
    assert_equal_weights(killed, uninterrupted[0])
    evaluated = [record["epoch"] for record in log["history"] if "eval_top1" in record]
    assert evaluated == [1, 2, 3, 4, 4]


def test_run_stopped_at_the_end_of_an_epoch_resumes_to_the_same_weights(photos, tmp_path, uninterrupted):
    class Stopped(BaseException):
        pass

    def stop(self, *_):
        if self.state.global_step == 6:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecipeTrainer, "_save_scaler", stop)
        with pytest.raises(Stopped):
            run(photos, tmp_path, save_steps=3, **EVERYTHING)
    assert last_complete_checkpoint(tmp_path / "checkpoints")[0].name == "checkpoint-3"
    run(photos, tmp_path, save_steps=3, resume=True, **EVERYTHING)
    assert_equal_weights(tmp_path, uninterrupted[0])


def test_finished_run_can_be_resumed_to_write_its_files_again(photos, uninterrupted):
    output, log = uninterrupted
    before = weights(output)
    (output / "model.safetensors").unlink()
    again = run(photos, output, save_steps=4, resume=True, **EVERYTHING)
    assert (again["top1"], again["steps"]) == (log["top1"], log["steps"])
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(output).items())


def test_resuming_nothing_starts_at_the_beginning_and_says_so(photos, tmp_path):
    with pytest.warns(MobileViTHubWarning, match="holds no complete checkpoint; training starts at the beginning"):
        log = run(photos, tmp_path, epochs=1, resume=True)
    assert log["steps"] == 3


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for name, state in (("checkpoint-9", '{"a": 1}'), ("checkpoint-10", '{"a": 2}'), ("checkpoint-200", '{"a"'),
                        ("checkpoint-30", None)):  # fmt: skip
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", {"a": 2})
    assert last_complete_checkpoint(tmp_path / "checkpoint-9") == (None, {})


@pytest.mark.slow
def test_two_processes_train_one_network(photos, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "mobilevit_hub.cli", "train", str(photos), "--output", str(tmp_path / "m"),
        "--model", "mobilevit-xxs", "--from-scratch", "--epochs", "6", "--batch-size", "12", "--image-size", "32",
        "--warmup-epochs", "1", "--ema-momentum", "0.3", "--json", "--quiet", "--save-steps", "5",
    ]  # fmt: skip
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    log = json.loads(process.stdout)
    assert log["steps"] == 6 * 48 // 24
    assert log["count"] == VALIDATION_COUNT
    assert log["machine"].startswith("2 × ")
    held_out = open_images(photos, "validation")
    results = mh.predict([held_out[i] for i in range(len(held_out))], tmp_path / "m", top_k=1)
    hits = [result["predictions"][0]["index"] == label for result, label in zip(results, held_out.labels, strict=True)]
    assert log["top1"] == pytest.approx(np.mean(hits))


# --- what cannot be trained ----------------------------------------------------------------------------------------


def test_photos_without_a_validation_part_hold_out_a_tenth(photos, tmp_path):
    with pytest.warns(MobileViTHubWarning, match="photos, 10% of each class, are held out to measure on"):
        log = run(photos / "train", tmp_path / "m", epochs=1)
    per_class = np.bincount(open_images(photos / "train").labels)
    assert log["count"] == sum(round(count / 10) for count in per_class)
    assert log["count"] + log["train_count"] == per_class.sum()


def test_other_classes_in_the_validation_photos_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match="have different classes"):
        other = tmp_path / "validation" / "hexagon"
        other.mkdir(parents=True)
        Image.fromarray(shape("circle", 0)).save(other / "a.png")
        train(photos, tmp_path / "m", validation=tmp_path / "validation")


@pytest.mark.parametrize(
    ("options", "field"),
    [({"workers": -1}, "workers"), ({"save_steps": 0}, "save_steps"), ({"model": "mobilevit-xxxs"}, None)],
)
def test_wrong_options_are_refused(photos, tmp_path, options, field):
    with pytest.raises((InputError, NotFoundError)) as caught:
        train(photos, tmp_path / "m", **{"from_scratch": True, **options})
    assert caught.value.field == field or field is None
    assert not (tmp_path / "m").exists()


def test_broken_photo_stops_before_training(photos, tmp_path):
    data = save_shapes(tmp_path / "data")
    (data / "train" / "circle" / "0.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"0\.png"):
        run(data, tmp_path / "m")


# --- transformers.Trainer as it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_models_train_in_the_plain_trainer(tmp_path, version):
    network = tiny(version, num_labels=3).float()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.rand(3, 64, 64, generator=generator), "labels": i % 3} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        logging_steps=1, disable_tqdm=True, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    trainer = transformers.Trainer(network, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 2 and np.isfinite(losses).all()
    after = network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in ("classifier.weight", "classifier.bias"))
    assert np.isfinite(trainer.evaluate()["eval_loss"])
