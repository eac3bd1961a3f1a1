"""Training in Keras: what is learnt and written, that it is what PyTorch does, and that a killed run continues."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from keras_networks import (
    CLASSIFIERS,
    QUIET,
    TINY,
    assert_trained_alike,
    images,
    keras,
    numpy,
    tiny,
    tiny_folder,
)
from shapes import CLASSES, TRAIN_COUNT, VALIDATION_COUNT, save_shapes

import mobilevit_hub as mh
from mobilevit_hub.checkpoints.tensors import read_tensors
from mobilevit_hub.cli.main import main
from mobilevit_hub.data.opening import open_images
from mobilevit_hub.errors import ImageError, InputError, MissingDependencyError, MobileViTHubWarning
from mobilevit_hub.images.processor import processor_for
from mobilevit_hub.recipes.recipe import get_recipe, is_hidden_matrix
from mobilevit_hub.recipes.run import is_main_process, last_complete_checkpoint
from mobilevit_hub.tf.training.optimizer import learning_rates, make_optimizer
from mobilevit_hub.tf.training.state import TrainingState
from mobilevit_hub.tf.weights import to_checkpoint, to_keras
from mobilevit_hub.training.run import train

pytestmark = [pytest.mark.tf, QUIET, pytest.mark.filterwarnings("ignore:The classifier:UserWarning")]

EAGERLY = pytest.mark.usefixtures("eagerly")
SMALL = {"epochs": 4, "batch_size": 16, "image_size": 32, "learning_rate": 4e-3, "warmup_epochs": 1.0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_shapes(tmp_path_factory.mktemp("shapes"))


# Version 2 has fewer weights, so that its training step is traced in half the time.
SCRATCH = {"model": "mobilevitv2-0.5", "from_scratch": True, "config": {**TINY[2], "n_attn_blocks": [1, 1, 1]}}


def run(photos, output, *, framework="tf", model=None, **changes):
    options = {name: changes.pop(name) for name in ("resume", "save_steps", "validation", "workers") if name in changes}
    replaced = ("epochs", "image_size") if "size_schedule" in changes else ()
    fields = {name: value for name, value in {**SMALL, **changes}.items() if name not in replaced}
    return train(
        photos, output, framework=framework, recipe=get_recipe(**fields), progress=False,
        command="mobilevit-hub train shapes", **options, **({"model": str(model)} if model else SCRATCH),
    )  # fmt: skip


def weights(folder):
    return read_tensors(folder / "model.safetensors")[0]


def differences(one, two):
    """Largest difference of each tensor that is not the same in two folders."""
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    return {name: np.abs(one[name] - two[name]).max() for name in one if not np.array_equal(one[name], two[name])}


# --- what is learnt and written ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """Folder and log of a run that learns the shapes."""
    output = tmp_path_factory.mktemp("run") / "model"
    return output, run(photos, output, epochs=20, crop_area=0.6)


def test_classes_are_learnt(trained):
    _, log = trained
    losses = [record["loss"] for record in log["history"] if "loss" in record]
    assert log["top1"] >= 0.9 and losses[-1] < 0.7 * losses[0]
    assert log["top5"] == 1 and log["count"] == VALIDATION_COUNT and log["steps"] == 20 * TRAIN_COUNT // 16


@pytest.mark.parity
def test_the_folder_is_that_of_the_pytorch_command(trained, photos, tmp_path):
    folder, log = trained
    twin = run(photos, tmp_path / "torch", framework="pt", epochs=1)
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "torch").iterdir()}
    assert log.keys() == twin.keys() and (log["framework"], twin["framework"]) == ("tf", "pt")
    assert json.loads((folder / "training_log.json").read_text()) == json.loads(json.dumps(log))
    evaluated = [next(set(r) for r in each["history"] if "eval_top1" in r) for each in (log, twin)]
    assert {"epoch", "eval_top1", "eval_top5", "seconds"} <= evaluated[0] & evaluated[1]
    card = (folder / "README.md").read_text()
    assert f"top-1 | {100 * log['top1']:.2f} %" in card and "TensorFlow" in card
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("runtime", ["tf", pytest.param("pt", marks=pytest.mark.parity)])
def test_scores_are_those_of_the_saved_files(trained, photos, runtime):
    folder, log = trained
    held_out = open_images(photos, "validation")
    results = mh.predict([held_out[i] for i in range(len(held_out))], folder, runtime=runtime, top_k=1)
    found = [result["predictions"][0]["label"] for result in results]
    assert np.mean([a == CLASSES[b] for a, b in zip(found, held_out.labels, strict=True)]) == pytest.approx(log["top1"])


@pytest.mark.parity
@pytest.mark.parametrize("muon", [0.0, 0.01])
def test_both_commands_learn_the_same(photos, tmp_path, muon):
    """Same weights, photos, random transforms, optimiser and averages: the same losses, scores and weights."""
    start = tiny_folder(tmp_path / "start", 2, id2label=dict(enumerate(CLASSES)), num_labels=None,
                        hidden_dropout_prob=0.0, classifier_dropout_prob=0.0)  # fmt: skip
    processor_for(36, 32, "bilinear", "bgr").save_pretrained(start)
    options = {"model": start, "epochs": 3, "learning_rate": 2e-3, "ema_momentum": 0.3,
               "weight_decay": 0.1, "mixup": 0.3, "clip_norm": 1.0, "muon_learning_rate": muon}  # fmt: skip
    logs = {f: run(photos, tmp_path / f, framework=f, **options) for f in ("pt", "tf")}
    losses = {f: [r["loss"] for r in log["history"] if "loss" in r] for f, log in logs.items()}
    assert len(losses["tf"]) == 3
    np.testing.assert_allclose(losses["tf"], losses["pt"], rtol=2e-3)
    assert_trained_alike(*(weights(folder) for folder in (start, tmp_path / "tf", tmp_path / "pt")))
    assert logs["tf"]["top1"] == pytest.approx(logs["pt"]["top1"], abs=1.5 / VALIDATION_COUNT)


@EAGERLY
def test_sizes_grow_by_schedule(photos, tmp_path):
    log = run(photos, tmp_path, size_schedule="32:1,64:1")
    assert log["steps"] == 6
    assert mh.image_processor(tmp_path).crop_size["height"] == 64
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 64


@EAGERLY
def test_progress_is_on_stderr_only(photos, tmp_path, capsys):
    options = {"framework": "tf", **SCRATCH, "recipe": get_recipe(**SMALL | {"epochs": 1})}
    train(photos, tmp_path / "m", **options)
    captured = capsys.readouterr()
    assert captured.out == "" and "epoch 1: top-1" in captured.err and "3/3" in captured.err
    train(photos, tmp_path / "quiet", progress=False, **options)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- options of the recipe -----------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize(
    ("peak", "final", "warmup", "steps"), [(4e-3, 4e-4, 7, 40), (1e-3, 0.0, 0, 12), (1, 1, 3, 5), (2, 0.5, 6, 6)]
)
def test_learning_rates_are_those_of_the_pytorch_command(peak, final, warmup, steps):
    import torch
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=final / peak)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = learning_rates(peak, final, warmup, steps)
    np.testing.assert_allclose([numpy(ours(i)) for i in range(steps)], expected, rtol=1e-5, atol=1e-7 * peak)


@pytest.mark.parity
@pytest.mark.parametrize("version", [1, 2])
def test_muon_takes_the_steps_of_the_pytorch_command(version):
    """Each weight with the same gradients, which are large where AdamW's epsilon is to count."""
    import torch

    from mobilevit_hub.pt.training.muon import Muon

    recipe = get_recipe(
        muon_learning_rate=0.02, learning_rate=0.003, weight_decay=0.1, warmup_epochs=0.0, clip_norm=0.0
    )
    network = tiny(version)
    optimizer = make_optimizer(recipe, network, 1000)
    trainable = {v.path for v in network.trainable_variables}
    weights = {n: w for n, w in network.named_weights().items() if w.variable.path in trainable}
    theirs = {
        n: torch.nn.Parameter(torch.from_numpy(to_checkpoint(w.variable.numpy(), w.kind))) for n, w in weights.items()
    }
    groups = [
        {"params": [theirs[name]], "muon": muon, "lr": 0.02 if muon else 0.003, "weight_decay": 0.1 * (value.dim() > 1)}
        for name, value in theirs.items()
        for muon in (is_hidden_matrix(name, value.shape),)
    ]
    assert {group["muon"] for group in groups} == {False, True}
    other, rng = Muon(groups), np.random.default_rng(0)
    for _ in range(3):
        gradients = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in theirs.items()}
        for name, value in theirs.items():
            value.grad = torch.from_numpy(gradients[name])
        other.step()
        ours = [to_keras(gradients[name], w.kind) for name, w in weights.items()]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in ours], [w.variable for w in weights.values()])
    for name, weight in weights.items():
        found = to_checkpoint(weight.variable.numpy(), weight.kind)
        np.testing.assert_allclose(found, theirs[name].detach().numpy(), rtol=2e-4, atol=2e-5, err_msg=name)
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("decay_all", [False, True])
def test_norms_and_biases_are_decayed_only_on_request(version, decay_all):
    """With gradients of zero, AdamW moves what it decays and nothing else."""
    network = tiny(version)
    recipe = get_recipe(**SMALL | {"warmup_epochs": 0.0}, decay_all=decay_all, weight_decay=0.5)
    optimizer = make_optimizer(recipe, network, 10)
    trainable = {v.path for v in network.trainable_variables}
    before = {name: numpy(w.variable + 0) for name, w in network.named_weights().items()}
    optimizer.apply([keras.ops.zeros_like(v) for v in network.trainable_variables], network.trainable_variables)
    for name, weight in network.named_weights().items():
        decayed = weight.variable.path in trainable and (decay_all or len(weight.shape) > 1)
        expected = before[name] * (1 - 4e-3 * 0.5) if decayed else before[name]
        np.testing.assert_allclose(numpy(weight.variable + 0), expected, rtol=1e-6, err_msg=name)


def test_the_average_follows_its_formula_statistics_too():
    network, states = tiny(1, num_labels=3), []
    network.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    network.optimizer.build(network.trainable_variables)
    floats = {n: w.variable for n, w in network.named_weights().items() if not n.endswith("num_batches_tracked")}
    training = TrainingState(network, 0.3)
    for seed in range(4):
        network.train_on_batch(images(2, 32, 32, seed), np.array([seed % 3, 0]))
        states.append({name: numpy(v + 0) for name, v in floats.items()})
        training.update_average()
    expected = states[0]
    for state in states[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * state[name] for name in expected}
    with training.average_in_place():
        for name, variable in floats.items():
            np.testing.assert_allclose(numpy(variable + 0), expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name, variable in floats.items():
        np.testing.assert_array_equal(numpy(variable + 0), states[-1][name], err_msg=name)
    moved = [name for name in expected if "running_var" in name and not np.allclose(expected[name], states[-1][name])]
    assert moved


@EAGERLY
@pytest.mark.parity
def test_frozen_backbone_computes_without_dropout_and_does_not_change_at_all(photos, tmp_path):
    start = tiny_folder(tmp_path / "start", 2, id2label=dict(enumerate(CLASSES)), num_labels=None,
                        ffn_dropout=0.5, classifier_dropout_prob=0.0)  # fmt: skip
    processor_for(36, 32, "bilinear", "rgb").save_pretrained(start)
    options = {"model": start, "epochs": 2, "freeze_backbone": True, "warmup_epochs": 0.0}
    logs = [run(photos, tmp_path / f, framework=f, **options) for f in ("tf", "pt")]
    assert set(differences(tmp_path / "tf", start)) == {"classifier.weight", "classifier.bias"}
    losses = [[r["loss"] for r in log["history"] if "loss" in r] for log in logs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert json.loads((tmp_path / "tf" / "config.json").read_text())["ffn_dropout"] == 0.5


@EAGERLY
def test_bf16_learns_and_saves_float32(photos, tmp_path):
    policy = keras.config.dtype_policy().name
    log = run(photos, tmp_path, epochs=3, bf16=True)
    losses = [record["loss"] for record in log["history"] if "loss" in record]
    assert losses[-1] < losses[0]
    assert {str(t.dtype) for n, t in weights(tmp_path).items() if "tracked" not in n} == {"float32"}
    assert keras.config.dtype_policy().name == policy


@EAGERLY
def test_fine_tuning_keeps_channel_order_and_filter(photos, tmp_path):
    start = tiny_folder(tmp_path / "start", 2)
    processor_for(48, 32, "bicubic", "bgr").save_pretrained(start)
    with pytest.warns(MobileViTHubWarning, match="classifier for 3 labels is new"):
        run(photos, tmp_path / "m", model=start, epochs=1)
    processor = mh.image_processor(tmp_path / "m")
    assert (processor.channel_order, processor.interpolation) == ("bgr", "bicubic")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (36, 32)


# --- interruptions -------------------------------------------------------------------------------------------------

EVERYTHING = {"ema_momentum": 0.1, "muon_learning_rate": 0.01, "dropout": 0.1, "mixup": 0.2, "cutmix": 1.0, "rand_augment": 2, "random_erase": 0.25,
              "size_schedule": "32:1,48:1"}  # fmt: skip

KILLED_RUN = """
import json, os, signal, sys
import tensorflow as tf
from mobilevit_hub.recipes import get_recipe
from mobilevit_hub.recipes.recipe import is_hidden_matrix
from mobilevit_hub.tf.training.state import TrainingState
from mobilevit_hub.training import train

save = TrainingState.save

def killed(self, path):
    if path.parent.name == "checkpoint-5":
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, path)

TrainingState.save = killed
tf.config.run_functions_eagerly(sys.argv[2] == "eagerly")
options = json.loads(sys.argv[1])
train(recipe=get_recipe(**options.pop("recipe")), **options)
"""


@pytest.mark.parametrize("how", ["eagerly", pytest.param("in a graph", marks=pytest.mark.slow)])
def test_killed_run_resumes_to_exactly_the_same_weights(photos, tmp_path, request, how):
    if how == "eagerly":
        request.getfixturevalue("eagerly")
    whole = run(photos, tmp_path / "whole", save_steps=2, **EVERYTHING)
    output = tmp_path / "killed"
    recipe = {n: v for n, v in {**SMALL, **EVERYTHING}.items() if n not in ("epochs", "image_size")}
    options = {
        "data": str(photos), "output": str(output), "save_steps": 2, "progress": False, "recipe": recipe,
        "framework": "tf", **SCRATCH,
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, json.dumps(options), how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (output / "checkpoints" / "checkpoint-5").exists() and not (output / "config.json").exists()
    assert last_complete_checkpoint(output / "checkpoints")[0].name == "checkpoint-3"

    with pytest.raises(InputError, match="holds an earlier run; continue it with --resume"):
        run(photos, output, save_steps=2, **EVERYTHING)
    with pytest.raises(InputError, match=r"was started with learning_rate=0\.004; resume it with the same options"):
        run(photos, output, save_steps=2, resume=True, **{**EVERYTHING, "learning_rate": 0.1})
    log = run(photos, output, save_steps=2, resume=True, **EVERYTHING)
    assert differences(output, tmp_path / "whole") == {}
    assert (log["steps"], log["top1"]) == (whole["steps"], whole["top1"]) == (6, log["top1"])
    losses = [[(r["step"], r["loss"]) for r in each["history"] if "loss" in r] for each in (log, whole)]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == [2, 3, 5, 6]
    again = run(photos, output, save_steps=2, resume=True, **EVERYTHING)
    assert again["top1"] == log["top1"] and differences(output, tmp_path / "whole") == {}


@pytest.mark.parity
def test_a_run_of_the_other_framework_is_not_resumed(photos, trained):
    with pytest.raises(InputError, match="was started with framework='tf'; resume it with the same options"):
        run(photos, trained[0], framework="pt", resume=True, epochs=20, crop_area=0.6)


@EAGERLY
def test_resuming_nothing_starts_at_the_beginning_and_says_so(photos, tmp_path):
    with pytest.warns(MobileViTHubWarning, match="holds no complete checkpoint; training starts at the beginning"):
        log = run(photos, tmp_path, epochs=1, resume=True)
    assert log["steps"] == 3


# --- what cannot be trained ----------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="framework is 'jax'; expected one of pt, tf"):
        run(photos, tmp_path / "m", framework="jax")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}', True),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', False),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}', True),
        ('{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}', False),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', False),
    ],
)
def test_one_process_writes(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert is_main_process("tf") is expected and is_main_process("pt")


@pytest.mark.parametrize("text", ["{bad", "[]", '{"task": 3}'])
def test_a_wrong_cluster_is_explained(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="environment variable TF_CONFIG is .*; expected JSON such as"):
        is_main_process("tf")


def test_another_backend_is_named(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    message = "^Training in Keras needs Keras on TensorFlow, but it runs on 'torch'"
    with pytest.raises(MissingDependencyError, match=message):
        train("nowhere", "out", framework="tf")


@pytest.mark.alone
@EAGERLY
@pytest.mark.parametrize(("split", "in_memory"), [("train", True), ("train", False), ("validation", False)])
def test_broken_photo_is_named(tmp_path, monkeypatch, split, in_memory):
    monkeypatch.setattr("mobilevit_hub.data.labelled.CACHE_BYTES", 10**9 if in_memory else 1)
    data = save_shapes(tmp_path / "data")
    (data / split / "circle" / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"photo \d+: .*3\.png"):
        run(data, tmp_path / "m", epochs=1)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.alone
@EAGERLY
def test_the_command_trains_predicts_and_informs(photos, tmp_path, capsys):
    start = tiny_folder(tmp_path / "start", 2, id2label=dict(enumerate(CLASSES)), num_labels=None)
    processor_for(36, 32, "bilinear", "rgb").save_pretrained(start)
    output = tmp_path / "m"
    options = ["--epochs", "1", "--batch-size", "16", "--image-size", "32", "--workers", "2", "--quiet", "--json"]
    assert (
        main(["train", str(photos), "--output", str(output), "--model", str(start), "--framework", "tf", *options]) == 0
    )
    log = json.loads(capsys.readouterr().out)
    assert (log["framework"], log["steps"]) == ("tf", 3)
    files = [str(f) for f in sorted((photos / "validation" / "circle").iterdir())]
    assert main(["predict", *files, "--model", str(output), "--framework", "tf", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = mh.predict(files, output, runtime="tf")
    assert [r["predictions"] for r in printed] == [r["predictions"] for r in expected]
    assert main(["info", str(output), "--framework", "tf", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    network = CLASSIFIERS[2].from_pretrained(output)
    assert model == {
        "class": "TFMobileViTV2ForImageClassification",
        "params": sum(int(np.prod(v.shape)) for v in network.trainable_variables),
    }


@pytest.mark.parity
def test_both_runtimes_predict_the_same(photos):
    files = sorted((photos / "validation").rglob("*.png"))[:3]
    for ours, theirs in zip(*(mh.predict(files, runtime=runtime, top_k=200) for runtime in ("tf", "pt")), strict=True):
        scores = [{p["index"]: p["score"] for p in result["predictions"]} for result in (ours, theirs)]
        np.testing.assert_allclose([scores[0][i] for i in range(200)], [scores[1][i] for i in range(200)], atol=1e-5)
