"""The inference form in PyTorch, in C++ and plain, against Apple's outputs and the trainable model, with twins that fail."""

import ctypes
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from networks import MODELS, images, logits, tiny, tiny_config, to_torch
from torch import nn

import mobilevit_hub as mh
from mobilevit_hub.errors import CheckpointError, InputError
from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.pt.inference import folded, kernels
from mobilevit_hub.pt.inference import model as inference
from mobilevit_hub.pt.inference.model import InferenceModel
from mobilevit_hub.pt.mobilevit import TransformerLayer

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.torch
needs_compiler = pytest.mark.skipif(kernels.compiler() is None, reason="needs a C++ compiler")
FORMS = [pytest.param(True, marks=needs_compiler, id="kernels"), pytest.param(False, id="plain")]
# 256×64: whole patches everywhere. 70×101: odd maps from the first stage on. 33×47: a last map of one pixel by two.
SIZES = [(256, 64), (96, 96), (70, 101), (33, 47)]
# What the kernels leave to plain PyTorch.
LEFT = [
    (1, {"use_fusion": False}),
    (1, {"output_stride": 8, "hidden_act": "gelu"}),
    (1, {"patch_size": 4}),
    (2, {"odd_map": "stock"}),
    (2, {"attn_norm": "layer", "hidden_act": "relu"}),
    (2, {"output_stride": 16}),
    (2, {"layer_norm_eps": 1e-2}),
    (1, {"num_channels": 4}),
]
TAKEN = [
    (1, {}),
    (1, {"qkv_bias": False, "expand_ratio": 1.0, "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}),
    (1, {"hidden_sizes": [20, 28, 36], "num_attention_heads": 4, "conv_kernel_size": 1}),
    (2, {}),
    (2, {"n_attn_blocks": [2, 1, 3], "width_multiplier": 0.5}),
]


def build(version, fields):
    return tiny(version, **fields).float()


def parts(got, expected):
    """Largest difference in parts of the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max())


def difference(model, optimized, pixels):
    return parts(optimized(pixels).logits, logits(model, pixels))


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------
# The same numbers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "compile"),
    [
        *(pytest.param(variant, True, marks=needs_compiler) for variant in reference.VARIANTS),
        ("mobilevit_xxs", False),
        ("mobilevitv2_050", False),
    ],
)
def test_every_logit_equals_apples(variant, compile):
    config = config_from_dict(reference.config(variant))
    with torch.device("meta"):
        model = MODELS[config.model_type](config)
    model.load_state_dict(to_torch(reference.state_dict(variant)), strict=True, assign=True)
    optimized = model.eval().optimize_for_inference(compile=compile)
    assert optimized.compiled == compile
    cases = reference.case_ids("logits", (variant,))
    assert len(cases) == 4
    for case in (reference.load_case(*ids) for ids in cases):
        case.check({"logits": optimized(torch.from_numpy(case.input())).logits})


@needs_compiler
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("version", "fields"), TAKEN)
def test_the_kernels_compute_what_the_model_computes(version, fields, height, width):
    model = build(version, fields)
    assert difference(model, model.optimize_for_inference(compile=True), images(3, height, width)) < 1e-5


@pytest.mark.parametrize(("height", "width"), SIZES[1:3])
@pytest.mark.parametrize(("version", "fields"), TAKEN + LEFT)
def test_plain_pytorch_computes_what_the_model_computes(version, fields, height, width):
    model = build(version, fields)
    pixels = torch.rand(3, fields.get("num_channels", 3), height, width)
    assert difference(model, model.optimize_for_inference(compile=False), pixels) < 1e-5


@needs_compiler
@pytest.mark.parametrize("version", [1, 2])
def test_no_number_of_threads_or_images_changes_a_bit(version):
    model, pixels = build(version, {}), images(7, 96, 64)
    optimized = model.optimize_for_inference(compile=True)
    torch.set_num_threads(1)
    alone = torch.cat([optimized(image).logits for image in pixels.split(1)])
    assert parts(alone, logits(model, pixels)) < 1e-5
    for threads in (1, 2, 3, 5, 70):
        torch.set_num_threads(threads)
        for count in (1, 2, 4, 7):
            assert torch.equal(optimized(pixels[:count]).logits, alone[:count]), (threads, count)


@needs_compiler
def test_sizes_in_turn_do_not_disturb_each_other():
    model = build(1, {})
    optimized = model.optimize_for_inference()
    batches = [images(2, *size, seed=i) for i, size in enumerate(SIZES)]
    expected = [logits(model, pixels) for pixels in batches]
    for _ in range(2):
        for pixels, wanted in zip(batches, expected, strict=True):
            assert parts(optimized(pixels).logits, wanted) < 1e-5


@needs_compiler
def test_calls_from_several_threads_take_turns():
    models = [build(1, {}), build(2, {})]
    optimized = [model.optimize_for_inference() for model in models]
    batches = [images(2, 64, 64 + 32 * i, seed=i) for i in range(4)]
    found: list[float] = []

    def work(i):
        for j in range(5):
            model, form, pixels = models[(i + j) % 2], optimized[(i + j) % 2], batches[(i * j) % 4]
            found.append(difference(model, form, pixels))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert max(found) < 1e-5


@needs_compiler
def test_a_forked_process_has_threads_of_its_own():
    code = (
        "import os, torch, mobilevit_hub as mh\n"
        "torch.set_num_threads(2)\n"
        "model = mh.from_pretrained('mobilevit-xxs-tiny-imagenet', optimize=True)\n"
        "assert model.compiled\n"
        "pixels = torch.rand(1, 3, 96, 96)\n"
        "expected = model(pixels).logits\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(model(pixels).logits, expected) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=600)


@pytest.mark.parametrize("compile", [None, False])
@pytest.mark.parametrize(("version", "fields"), TAKEN)
def test_bfloat16_is_near_float32(version, fields, compile):
    model = build(version, fields)
    optimized = model.optimize_for_inference(dtype="bfloat16", compile=compile)
    for height, width in SIZES[:3]:
        pixels = images(3, height, width)
        got = optimized(pixels).logits
        assert got.dtype == torch.float32
        assert 1e-5 < parts(got, logits(model, pixels)) < 0.1
    assert ("products of bfloat16" if optimized.compiled else "plain PyTorch") in optimized.report[-1]


def test_bfloat16_and_float32_in_turn_do_not_disturb_each_other():
    model, pixels = build(1, {}), images(5, 64, 96)
    expected = logits(model, pixels)
    cases = [
        (model.optimize_for_inference(dtype=dtype, compile=compile), tolerance)
        for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.03))
        for compile in (None, False)
    ]
    for form, tolerance in [*cases, *cases[::-1], *cases]:
        assert parts(form(pixels).logits, expected) < tolerance


@needs_compiler
@pytest.mark.parametrize("shift", [0.7, 21.0])
def test_tokens_that_are_nearly_constant_keep_their_digits(shift):
    model = tiny(1, hidden_sizes=[20, 28, 36], num_attention_heads=4)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, TransformerLayer):
                layer.attention.output.dense.weight.mul_(1e-3)
                layer.attention.output.dense.bias.fill_(shift)
    pixels = images(2, 96, 96)
    expected = logits(model, pixels.double())  # float64
    own = logits(model.float(), pixels)
    ours = model.optimize_for_inference(compile=True)(pixels).logits
    assert parts(ours, expected) < max(1e-5, 4 * parts(own, expected))


# --------------------------------------------------------------------------------------------------
# Twins that must fail
# --------------------------------------------------------------------------------------------------


def forget_statistics(model):
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(0.3)


def forget_a_bias(model):
    next(m for m in model.modules() if isinstance(m, nn.Linear)).bias.data.add_(0.3)


def forget_a_norm(model):
    next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)).weight.data.mul_(1.3)


@pytest.mark.parametrize("compile", FORMS)
@pytest.mark.parametrize("change", [forget_statistics, forget_a_bias, forget_a_norm])
@pytest.mark.parametrize("version", [1, 2])
def test_a_forgotten_tensor_shows(version, change, compile):
    model = build(version, {})
    optimized, pixels = model.optimize_for_inference(compile=compile), images(2, 96, 96)
    assert difference(model, optimized, pixels) < 1e-5
    with torch.no_grad():
        change(model)
    assert difference(model, optimized, pixels) > 1e-4


@needs_compiler
def test_the_other_corner_rule_is_far_on_odd_maps(monkeypatch):
    model, pixels = build(2, {}), images(2, 70, 101)
    step = kernels.Plan._step
    monkeypatch.setattr(kernels.Plan, "_step", lambda *a, **values: step(*a, **{**values, "corners": 0}))
    assert difference(model, model.optimize_for_inference(), pixels) > 1e-4
    assert difference(model, model.optimize_for_inference(), images(2, 64, 128)) < 1e-5


# --------------------------------------------------------------------------------------------------
# How it is asked for
# --------------------------------------------------------------------------------------------------


def test_the_model_stays_usable_and_trainable():
    model = build(1, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimized = model.optimize_for_inference()
    optimized(images(2, 64, 64))
    assert {name: tensor.equal(before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    loss = model.train()(images(2, 64, 64), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not optimized(images(2, 64, 64)).logits.requires_grad


def test_from_pretrained_and_the_classifier_give_the_inference_form():
    name = "mobilevit-xxs-tiny-imagenet"
    plain, optimized = mh.from_pretrained(name), mh.from_pretrained(name, optimize=True)
    assert isinstance(optimized, InferenceModel)
    assert optimized.config.id2label == plain.config.id2label
    assert difference(plain, optimized, images(2, 96, 96)) < 1e-5
    from mobilevit_hub.prediction import open_classifier

    assert isinstance(open_classifier(name).model, InferenceModel)


def test_classifying_a_photo_builds_no_trainable_network_and_needs_no_transformers():
    """What is not imported cannot have been built."""
    code = (
        "import sys, mobilevit_hub as mh\n"
        "print(mh.predict('examples/photos/espresso.jpg', 'mobilevit-xxs-tiny-imagenet')[0]['predictions'][0])\n"
        "print(sorted({'torch', 'transformers', 'mobilevit_hub.pt.mobilevit'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    best, imported = done.stdout.splitlines()
    assert "espresso" in best
    assert imported == "['torch']"


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_is_folded_as_its_model_is(version, tmp_path):
    model, pixels = build(version, {}), images(2, 70, 101)
    model.save_pretrained(tmp_path)
    opened = mh.from_pretrained(tmp_path, optimize=True)
    assert torch.equal(opened(pixels).logits, model.optimize_for_inference()(pixels).logits)
    assert opened.config.to_diff_dict() == mh.from_pretrained(tmp_path).config.to_diff_dict()


def test_a_checkpoint_that_does_not_fit_is_refused_as_by_the_model(tmp_path):
    build(1, {}).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"use_fusion": False}))
    messages = []
    for optimize in (False, True):
        with pytest.raises(CheckpointError) as error:
            mh.from_pretrained(tmp_path, optimize=optimize)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "fusion" in messages[0]


@needs_compiler
@pytest.mark.parametrize(("version", "fields"), LEFT)
def test_what_the_kernels_cannot_do_goes_to_plain_pytorch_and_is_said(version, fields):
    model = build(version, fields)
    optimized = model.optimize_for_inference()
    assert not optimized.compiled
    assert optimized.report[-1].startswith("plain PyTorch")
    with pytest.raises(InputError, match="compile is True, but "):
        model.optimize_for_inference(compile=True)


@needs_compiler
def test_taken_networks_run_in_the_kernels():
    for version, fields in TAKEN:
        assert build(version, fields).optimize_for_inference().compiled, fields


@pytest.mark.parametrize("compiler", [None, "false"])
def test_without_a_compiler_it_runs_in_plain_pytorch_and_says_why(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "compiler", lambda: compiler and shutil.which(compiler))
    kernels.library.cache_clear()
    try:
        model = build(1, {})
        optimized = model.optimize_for_inference()
        assert not optimized.compiled
        assert ("no C++ compiler" if compiler is None else "cannot compile") in optimized.report[-1]
        assert difference(model, optimized, images(2, 64, 64)) < 1e-5
        with pytest.raises(InputError, match="compiler|compile kernels"):
            model.optimize_for_inference(compile=True)
    finally:
        kernels.library.cache_clear()
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_the_library_is_compiled_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        assert isinstance(kernels.library(), ctypes.CDLL)
        (made,) = tmp_path.rglob("*.so")
        assert made.parent.name == "mobilevit_hub"
        assert list(made.parent.iterdir()) == [made]
        first = made.stat().st_mtime_ns
        kernels.library.cache_clear()
        monkeypatch.setattr(kernels.subprocess, "run", None)  # a second compilation would fail
        kernels.library()
        assert made.stat().st_mtime_ns == first
    finally:
        kernels.library.cache_clear()


@pytest.mark.parametrize("compile", FORMS)
def test_bad_images_are_refused(compile):
    optimized = build(1, {}).optimize_for_inference(compile=compile)
    for pixels, words in [
        (torch.rand(1, 3, 16, 64), "too small"),
        (torch.rand(1, 64, 64, 3), "channels-last"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "dtype"),
        (torch.rand(0, 3, 64, 64), "no image"),
    ]:
        with pytest.raises(InputError, match=words):
            optimized(pixels)


@pytest.mark.parametrize("compile", FORMS)
def test_any_layout_and_float_type_of_images_is_taken(compile):
    model = build(2, {})
    optimized, pixels = model.optimize_for_inference(compile=compile), images(3, 64, 96)
    expected = optimized(pixels).logits
    assert torch.equal(optimized(pixels.to(memory_format=torch.channels_last)).logits, expected)
    assert parts(optimized(pixels.double()).logits, expected) < 1e-6
    assert parts(optimized(torch.cat([pixels, pixels])[::2]).logits[0], expected[0]) < 1e-5


def test_bad_options_are_refused():
    model = build(1, {})
    with pytest.raises(InputError, match="dtype is 'int8'"):
        model.optimize_for_inference(dtype="int8")
    with pytest.raises(InputError, match="models with a classifier"):
        model.mobilevit.optimize_for_inference()


def test_a_network_without_labels_returns_its_pooled_features():
    model = build(1, {"num_labels": 0})
    pixels = images(2, 64, 64)
    expected = logits(model, pixels)
    for compile in (None, False):
        assert parts(model.optimize_for_inference(compile=compile)(pixels).logits, expected) < 1e-5


@pytest.mark.parametrize("version", [1, 2])
def test_a_large_batch_is_computed_a_few_images_at_a_time(version, monkeypatch):
    optimized = build(version, {}).optimize_for_inference(compile=False)
    calls, maps = [], []
    forward, convolution = folded.FoldedClassifier.forward, folded.Convolution.forward
    monkeypatch.setattr(folded.FoldedClassifier, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    monkeypatch.setattr(
        folded.Convolution, "forward", lambda self, x: (y := convolution(self, x), maps.append(y.nbytes))[0]
    )
    optimized(images(1, 64, 96))
    monkeypatch.setattr(inference, "MAP_BYTES", 2 * max(maps))
    assert len(optimized(images(5, 64, 96)).logits) == 5
    assert calls == [1, 2, 2, 1]
    monkeypatch.setattr(inference, "MAP_BYTES", 1)
    assert len(optimized(images(2, 64, 96)).logits) == 2
    assert calls[4:] == [1, 1]


@needs_compiler
def test_channels_that_do_not_fit_are_refused_as_by_the_model():
    model = build(1, {"expand_ratio": 1.0, "neck_hidden_sizes": [8, 12, 16, 16, 24, 24, 32]})
    with pytest.raises(RuntimeError):
        logits(model, images(1, 64, 64))
    with pytest.raises(InputError, match="expand_ratio is 1, but 12 channels"):
        model.optimize_for_inference()(images(1, 64, 64))


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"not a library"])
def test_a_damaged_library_is_compiled_again(content, monkeypatch, tmp_path):
    try:
        kernels.library.cache_clear()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        kernels.library()
        (made,) = (tmp_path / "first").rglob("*.so")
        damaged = tmp_path / "second" / made.relative_to(tmp_path / "first")
        damaged.parent.mkdir(parents=True)
        damaged.write_bytes(content)
        kernels.library.cache_clear()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        assert isinstance(kernels.library(), ctypes.CDLL)
        assert damaged.stat().st_size == made.stat().st_size
    finally:
        kernels.library.cache_clear()


@needs_compiler
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_empty_layer_goes_to_plain_pytorch():
    model, pixels = MODELS["mobilevit"](tiny_config(1, mlp_ratio=0.02)).eval(), images(1, 64, 64)
    optimized = model.optimize_for_inference()
    assert not optimized.compiled
    assert difference(model, optimized, pixels) < 1e-5


@needs_compiler
@pytest.mark.parametrize("home", ["read-only", "none"])
def test_without_a_place_for_the_library_it_is_compiled_for_this_process(home, monkeypatch, tmp_path):
    if home == "read-only":  # a file where the folder would be, which stops root as well
        (tmp_path / "mobilevit_hub").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(kernels.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    kernels.library.cache_clear()
    try:
        assert isinstance(kernels.library(), ctypes.CDLL)
    finally:
        kernels.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("version", [1, 2])
def test_not_a_number_in_an_image_stays_in_it(version):
    optimized = build(version, {}).optimize_for_inference()
    pixels = images(3, 64, 64)
    expected = optimized(pixels).logits
    spoiled = pixels.clone()
    spoiled[1, 0, 5, 5] = float("nan")
    got = optimized(spoiled).logits
    assert torch.isnan(got[1]).all()
    assert parts(got[[0, 2]], expected[[0, 2]]) < 1e-5
    assert np.isfinite(optimized(pixels).logits.numpy()).all()
    assert parts(optimized(pixels).logits, expected) < 1e-5
