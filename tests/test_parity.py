"""Verification: the libraries agree on every stage, and a wrong stem, stage, tensor or library is named."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from networks import MODELS, awake, import_timm, tiny_config
from safetensors.numpy import load_file, save_file

from mobilevit_hub.checkpoints.saving import save_checkpoint
from mobilevit_hub.conversion import libraries, processes
from mobilevit_hub.conversion.libraries import differs_by_design, images, inexpressible, timm_architecture
from mobilevit_hub.conversion.parity import TOLERANCES, ParityReport, Row, compare
from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config, config_from_dict
from mobilevit_hub.pt import MobileViTModel, MobileViTV2Model

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of TensorFlow
]

EMBEDDED = "mobilevit-xxs-tiny-imagenet"
EVEN, ODD = "128×128", "104×136"
PLACES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "logits"]
VERSIONS = pytest.mark.parametrize("version", [1, 2])
STOCK = {1: transformers.models.mobilevit.modeling_mobilevit, 2: transformers.models.mobilevitv2.modeling_mobilevitv2}


@pytest.fixture
def only_torch(monkeypatch):
    """As where Keras is not installed: quicker, where Keras has no part in what is tested."""
    found = libraries.find_spec
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "keras" else found(name))


def tiny_folder(folder, version, **fields):
    awake(MODELS[tiny_config(version).model_type](tiny_config(version, **fields))).save_pretrained(folder)
    return folder


def here(name, **options):
    return compare(name, own_processes=False, **options)


def rows_of(report, library):
    return [(row.size, row.place) for row in report.rows if row.library == library]


def first_failure(report):
    assert not report.passed
    assert report.lines()[-1].startswith("FAIL: ")
    assert report.worst == next(row for row in report.rows if not row.passed)
    return report.worst.library, report.worst.place


EVERYWHERE = [(size, place) for size in (EVEN, ODD) for place in PLACES]
AT_EVEN = [(EVEN, place) for place in PLACES]


# --------------------------------------------------------------------------------------------------
# Agreement
# --------------------------------------------------------------------------------------------------


@pytest.mark.tf
@VERSIONS
def test_all_libraries_agree_on_every_stage(tmp_path, version):
    report = here(tiny_folder(tmp_path, version))
    assert report.passed, report.lines()
    assert report.reference == "PyTorch"
    assert rows_of(report, "Keras") == EVERYWHERE
    assert rows_of(report, "transformers") == (EVERYWHERE if version == 1 else AT_EVEN)
    assert {row.place: row.tolerance for row in report.rows} == {**dict.fromkeys(PLACES, 2e-4), "logits": 1e-4}
    # Different programs: not one array twice.
    assert any(row.difference > 0 for row in report.rows if row.library == "Keras")


def test_the_second_size_has_odd_maps_in_stages_3_to_5():
    """By hooks on a network, not by a formula."""
    network = awake(MODELS["mobilevit"](tiny_config(1))).eval()
    stages = network(torch.zeros(1, 3, 104, 136), output_hidden_states=True).hidden_states
    assert [tuple(stage.shape[2:]) for stage in stages[2:]] == [(13, 17), (7, 9), (4, 5)]
    assert [differs_by_design("transformers", tiny_config(2), size) is None for size in libraries.SIZES] == [
        True,
        False,
    ]


def test_images_are_two_awake_ones_that_never_change():
    pixels = images(3, 104, 136)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 104, 136), np.float32)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert np.array_equal(pixels, images(3, 104, 136))
    picture, noise = (np.abs(np.diff(image)).mean() for image in pixels)
    assert picture < noise / 4
    assert np.abs(pixels - pixels[:, ::-1]).mean() > 0.1
    assert pixels.std(axis=(2, 3)).min() > 0.1


@pytest.mark.parity
def test_the_embedded_checkpoint_passes_in_processes_that_print_nothing(capfd):
    report = compare(EMBEDDED)
    assert report.passed, report.lines()
    assert rows_of(report, "Keras") == rows_of(report, "transformers") == EVERYWHERE
    assert capfd.readouterr() == ("", "")


@VERSIONS
@pytest.mark.usefixtures("only_torch")
def test_a_checkpoint_without_classifier_is_compared_up_to_stage_5(tmp_path, version):
    config = tiny_config(version)
    awake({1: MobileViTModel, 2: MobileViTV2Model}[version](config)).save_pretrained(tmp_path)
    report = here(tmp_path)
    assert report.passed, report.lines()
    assert {row.place for row in report.rows} == set(PLACES) - {"logits"}
    assert "all that follows stage5: the checkpoint has no classifier" in report.not_checked


# --------------------------------------------------------------------------------------------------
# Disagreement
# --------------------------------------------------------------------------------------------------


def _flip_images(monkeypatch, version):
    network = getattr(STOCK[version], {1: "MobileViTModel", 2: "MobileViTV2Model"}[version])
    original = network.forward
    monkeypatch.setattr(network, "forward", lambda self, x, **options: original(self, x.flip(1), **options))


DISTINCT = {1: {"neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32]}, 2: {}}  # tells the stages apart


def _change_stage(change, stage=3):
    def patch(monkeypatch, version):
        layer = getattr(STOCK[version], {1: "MobileViTLayer", 2: "MobileViTV2Layer"}[version])
        channels = tiny_config(version, **DISTINCT[version]).stage_channels[stage]
        original = layer.forward

        def forward(self, features):
            output = original(self, features)
            return change(output) if output.shape[1] == channels else output

        monkeypatch.setattr(layer, "forward", forward)

    return patch


def _spoil(output):
    output[0, 0, 0, 0] = math.nan
    return output


WRONG_LIBRARIES = {
    "flipped channels": (_flip_images, "stem", "difference"),
    "stage 3 a thousandth larger": (_change_stage(lambda output: output * 1.001), "stage3", "difference"),
    "stage 4 with a NaN": (_change_stage(_spoil, stage=4), "stage4", "not finite"),
    "stage 5 cropped": (_change_stage(lambda output: output[..., :-1], stage=5), "stage5", "shape [2, "),
}


@VERSIONS
@pytest.mark.parametrize("wrong", WRONG_LIBRARIES)
@pytest.mark.usefixtures("only_torch")
def test_a_wrong_library_fails_at_the_stage_that_is_wrong(tmp_path, monkeypatch, version, wrong):
    patch, place, word = WRONG_LIBRARIES[wrong]
    patch(monkeypatch, version)
    report = here(tiny_folder(tmp_path, version, **DISTINCT[version]))
    assert first_failure(report) == ("transformers", place)
    assert word in report.lines()[-1]
    assert "FAIL" in next(line for line in report.lines() if line.startswith(f"{EVEN}  {place}"))
    before = PLACES[: PLACES.index(place)]
    assert all(row.passed for row in report.rows if row.place in before)


@pytest.mark.tf
def test_a_wrong_keras_twin_fails_where_it_is_wrong(tmp_path, monkeypatch):
    """Its first transformer is in stage 3."""
    from mobilevit_hub.tf.mobilevit import SelfAttention

    original = SelfAttention.call
    monkeypatch.setattr(SelfAttention, "call", lambda self, *x, **options: 1.01 * original(self, *x, **options))
    report = here(tiny_folder(tmp_path, 1))
    assert first_failure(report) == ("Keras", "stage3")
    assert all(row.passed for row in report.rows if row.library == "transformers")


@pytest.mark.tf
def test_a_library_that_cannot_open_it_is_a_failed_row_of_one_line(tmp_path, monkeypatch):
    def refuse(self, config):
        raise RuntimeError("the first line\nand the second")

    monkeypatch.setattr(transformers.MobileViTForImageClassification, "__init__", refuse)
    report = here(tiny_folder(tmp_path, 1))
    assert first_failure(report) == ("transformers", "opening")
    assert report.lines()[-1] == "FAIL: the first line and the second (opening, transformers)"
    assert [row.passed for row in report.rows if row.library == "Keras"] == [True] * 14


@pytest.mark.usefixtures("only_torch")
def test_a_missing_tensor_is_accepted_by_no_library(tmp_path):
    weights = tiny_folder(tmp_path, 2) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["mobilevitv2.encoder.layer.2.layernorm.bias"]
    save_file(tensors, weights)
    report = here(tmp_path)
    assert [(row.library, row.place) for row in report.rows] == [("PyTorch", "opening"), ("transformers", "opening")]
    assert all("mobilevitv2.encoder.layer.2.layernorm.bias" in row.error for row in report.rows)
    assert first_failure(report) == ("PyTorch", "opening")


# --------------------------------------------------------------------------------------------------
# timm
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mobilevit_xxs", "mobilevitv2_050"])
def converted(request, tmp_path_factory):
    """A converted checkpoint, and the timm file that it was made from; weights and names by the rule of the kit."""
    import_timm()
    folder = tmp_path_factory.mktemp(request.param)
    config = config_from_dict(reference.config(request.param))
    save_checkpoint(folder, reference.state_dict(request.param), config)
    return request.param, folder, reference.state_dict(request.param, "timm")


@pytest.mark.usefixtures("only_torch")
def test_timm_agrees_with_its_own_file_and_with_the_names_made_here(converted):
    _, folder, source = converted
    for report in (here(folder, source_tensors=source), here(folder)):
        assert report.passed, report.lines()
        assert rows_of(report, "timm") == EVERYWHERE


@pytest.mark.parametrize("place", ["stem", "stage3", "logits"])
@pytest.mark.usefixtures("only_torch")
def test_a_source_that_is_another_fails_where_it_differs(converted, place):
    variant, folder, source = converted
    name = {"stem": "stem.conv.weight", "stage3": "stages.2.1.transformer.0.mlp.fc1.weight", "logits": "head.fc.bias"}
    tensor = source[name[place]]
    changed = tensor[:, ::-1] if place == "stem" else tensor + np.float32(0.01)  # a stem that was not flipped
    report = here(folder, source_tensors={**source, name[place]: np.ascontiguousarray(changed)})
    assert first_failure(report) == ("timm", place), variant
    assert all(row.passed for row in report.rows if row.library == "transformers")


def test_timm_has_the_published_networks_and_no_others():
    assert timm_architecture(MobileViTConfig.from_preset("mobilevit-xs")) == "mobilevit_xs"
    assert timm_architecture(MobileViTConfig.from_preset(EMBEDDED)) == "mobilevit_xxs"
    changed = MobileViTV2Config.from_preset("mobilevitv2-1.5-in22k-384", num_labels=3, hidden_act="silu")
    assert timm_architecture(changed) == "mobilevitv2_150"
    for fields in ({"patch_size": 4}, {"hidden_act": "relu"}, {"n_attn_blocks": [2, 4, 4]}, {"attn_norm": "layer"}):
        assert timm_architecture(MobileViTV2Config.from_preset("mobilevitv2-1.5", **fields)) is None, fields
    assert inexpressible("timm", tiny_config(1), True) == "it has no architecture with this config"
    assert "output_stride 16" in inexpressible(
        "timm", MobileViTConfig.from_preset("mobilevit-s", output_stride=16), True
    )


# --------------------------------------------------------------------------------------------------
# What is not checked
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fields", "words"),
    [
        (1, {"patch_size": [8, 4, 2]}, "patch_size=[8, 4, 2]"),
        (1, {"use_fusion": False}, "use_fusion=False"),
        (1, {"n_attn_blocks": [1, 1, 1]}, "n_attn_blocks=[1, 1, 1]"),
        (1, {"attention_head_size": 8}, "attention_head_size=8"),
        (2, {"patch_size": [4, 2, 2]}, "patch_size=[4, 2, 2]"),
        (2, {"attn_norm": "layer"}, "attn_norm='layer'"),
        (2, {"output_stride": 16}, "output_stride 16"),
    ],
)
def test_what_transformers_cannot_express_is_said_and_the_twins_are_compared(version, fields, words):
    assert words in inexpressible("transformers", tiny_config(version, **fields), True)
    for twin in ("PyTorch", "Keras"):
        assert inexpressible(twin, tiny_config(version, **fields), True) is None


@pytest.mark.tf
def test_differences_by_design_are_listed_in_the_report(tmp_path):
    report = here(tiny_folder(tmp_path / "1", 1, use_fusion=False))
    assert report.passed, report.lines()
    assert rows_of(report, "Keras") == EVERYWHERE
    assert rows_of(report, "transformers") == []
    assert "not checked: transformers: its networks have no use_fusion=False" in report.lines()


@pytest.mark.parametrize(
    ("version", "fields"),
    [(1, {"output_stride": 16}), (1, {"patch_size": [4, 4, 4]}), (1, {"qkv_bias": False}), (2, {"odd_map": "stock"})],
)
@pytest.mark.usefixtures("only_torch")
def test_what_transformers_can_express_is_compared_at_both_sizes(tmp_path, version, fields):
    report = here(tiny_folder(tmp_path, version, **fields))
    assert report.passed, report.lines()
    assert rows_of(report, "transformers") == EVERYWHERE


@pytest.mark.usefixtures("only_torch")
def test_transformers_really_differs_where_it_is_left_out(tmp_path, monkeypatch):
    """Else the line would hide a comparison that could have been made."""
    monkeypatch.setattr(libraries, "_has_odd_map", lambda config, size: False)
    report = here(tiny_folder(tmp_path, 2))
    failed = [row for row in report.rows if not row.passed]
    assert {row.size for row in failed} == {ODD}
    assert failed[0].place == "stage3"


WITHOUT = """
    import json, sys
    from mobilevit_hub.conversion.parity import compare
    report = compare(sys.argv[1], own_processes=False)
    print(json.dumps([report.passed, report.not_checked, report.lines()[-1]]))
"""


@pytest.mark.parity
def test_one_library_alone_compares_nothing_and_fails(tmp_path):
    from keras_networks import fresh_process

    printed = fresh_process(WITHOUT, tiny_folder(tmp_path, 1), hide=("torch",), TF_CPP_MIN_LOG_LEVEL="3").stdout
    passed, not_checked, last = json.loads(printed.splitlines()[-1])
    assert not passed
    assert {f"{name}: torch is not installed" for name in ("PyTorch", "transformers", "timm")} == set(not_checked)
    assert last == "FAIL: nothing was compared; Keras alone can run the checkpoint here"


@pytest.mark.parametrize("missing", ["keras", "tensorflow"])
def test_a_library_that_is_not_installed_is_said(tmp_path, monkeypatch, missing):
    present = {"torch", "transformers", "keras", "tensorflow"} - {missing}
    monkeypatch.setattr(libraries, "find_spec", lambda name: name if name in present else None)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    report = here(tiny_folder(tmp_path, 1))
    assert report.passed, report.lines()
    assert report.not_checked == [f"Keras: {missing} is not installed", "timm: timm is not installed"]
    assert f"not checked: Keras: {missing} is not installed" in report.lines()


@pytest.mark.usefixtures("only_torch")
def test_a_library_that_cannot_be_imported_is_said(tmp_path, monkeypatch):
    """timm without what it needs is no fault of the checkpoint."""
    (tmp_path / "timm.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    folder = tmp_path / "converted"
    config = config_from_dict(reference.config("mobilevit_xxs"))
    save_checkpoint(folder, reference.state_dict("mobilevit_xxs"), config)
    report = here(folder)
    assert report.passed, report.lines()
    assert "timm: it cannot be imported: No module named 'a_module_that_nobody_has'" in report.not_checked


# --------------------------------------------------------------------------------------------------
# The report
# --------------------------------------------------------------------------------------------------


def test_report_as_text_and_as_json():
    rows = [Row(EVEN, "stem", "Keras", 1e-6, 2e-4), Row(EVEN, "stem", "timm", 3e-6, 2e-4),
            Row(EVEN, "logits", "Keras", 2e-6, 1e-4)]  # fmt: skip
    report = ParityReport("PyTorch", rows, ["transformers: torch is not installed"], 12.34)
    assert report.lines() == [
        "size     place   Keras    timm",
        "128×128  stem    1.0e-06  3.0e-06",
        "128×128  logits  2.0e-06  –",
        "not checked: transformers: torch is not installed",
        "compared with PyTorch in 12 s",
        "pass: largest difference 2.0e-06 (logits, Keras, 128×128), allowed 1e-04",
    ]
    rows.append(Row(ODD, "stage5", "timm", math.inf, 2e-4, "values that are not finite"))
    assert report.lines()[-1] == "FAIL: values that are not finite (stage5, timm, 104×136)"
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (record["passed"], record["reference"], record["seconds"]) == (False, "PyTorch", 12.3)
    assert record["worst"] == record["rows"][-1]
    assert (record["worst"]["difference"], record["worst"]["passed"]) == (None, False)


@pytest.mark.parametrize("difference", [2.1e-4, math.inf, math.nan])
def test_only_what_is_within_its_tolerance_passes(difference):
    good, bad = (Row(EVEN, "stage1", "Keras", d, TOLERANCES["stage1"]) for d in (1.9e-4, difference))
    assert ParityReport("PyTorch", [good]).passed
    assert not ParityReport("PyTorch", [good, bad]).passed
    assert not ParityReport("PyTorch", []).passed


# --------------------------------------------------------------------------------------------------
# The processes
# --------------------------------------------------------------------------------------------------


def command(path, *lines):
    """A program that stands where the interpreter is started."""
    path.write_text("\n".join(["#!/bin/sh", *lines]))
    path.chmod(0o755)
    return str(path)


def test_a_process_that_dies_fails_its_libraries(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "tiny", 1)
    monkeypatch.setattr(sys, "executable", command(tmp_path / "dies", "echo out of memory", "kill -9 $$"))
    report = compare(folder)
    assert not report.passed
    assert report.rows
    assert {row.error for row in report.rows} == {"its process was ended by SIGKILL: out of memory"}
    monkeypatch.setattr(sys, "executable", command(tmp_path / "fails", "exit 3"))
    assert {row.error for row in compare(folder).rows} == {"its process ended with status 3: it printed nothing"}


def is_running(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_interrupt_ends_the_process(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "tiny", 1)
    interrupt = f"echo $$ > {tmp_path}/number; sleep 0.5; kill -INT {os.getpid()}; exec sleep 60"
    monkeypatch.setattr(sys, "executable", command(tmp_path / "waits", interrupt))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(folder)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_running(int((tmp_path / "number").read_text()))


def test_a_process_ends_with_its_parent(tmp_path):
    """Whatever ended the parent: its end of the pipe is closed."""
    folder = tiny_folder(tmp_path / "tiny", 1)
    code = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    started = [sys.executable, processes.__file__, folder, tmp_path, "PyTorch"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code, *started], stdout=subprocess.PIPE, env=environment) as parent:
        number = int(parent.stdout.readline())
        assert is_running(number)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 600
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(number)
    assert not Path(tmp_path, "PyTorch.safetensors").exists()
