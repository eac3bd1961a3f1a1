"""Checkpoints: strict loading from folders, new heads, and folders exchanged with transformers and timm."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from networks import MODELS, STOCK_MODELS, awake, images, tiny_config, to_torch
from safetensors import safe_open
from safetensors.torch import save_file as save_torch_file

import mobilevit_hub as mh
from mobilevit_hub.checkpoints.fitting import LoadReport
from mobilevit_hub.checkpoints.tensors import to_safetensors
from mobilevit_hub.errors import CheckpointError, ConfigError, MobileViTHubError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.hub.find import find_checkpoint
from mobilevit_hub.network.configuration import load_config

pytestmark = pytest.mark.torch

VERSIONS = pytest.mark.parametrize("version", [1, 2])
CLASSES = {
    1: (mh.MobileViTForImageClassification, mh.MobileViTModel, mh.MobileViTBackbone),
    2: (mh.MobileViTV2ForImageClassification, mh.MobileViTV2Model, mh.MobileViTV2Backbone),
}
PREFIX = {1: "mobilevit", 2: "mobilevitv2"}
CONV = {v: f"{p}.encoder.layer.2.conv_1x1.convolution.weight" for v, p in PREFIX.items()}
VARIANCE = {v: f"{p}.conv_stem.normalization.running_var" for v, p in PREFIX.items()}
COUNTER = {v: f"{p}.conv_stem.normalization.num_batches_tracked" for v, p in PREFIX.items()}


def network(version, **fields):
    config = tiny_config(version, **fields)
    return awake(MODELS[config.model_type](config), seed=version).eval()


def arrays(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def put(folder, tensors, config, weights="model.safetensors"):
    """Writes a checkpoint folder as somebody else would: no save id."""
    folder.mkdir(exist_ok=True)
    data = config if isinstance(config, dict) else config.to_dict()
    (folder / "config.json").write_text(json.dumps(data))
    if weights == "model.safetensors":
        (folder / weights).write_bytes(to_safetensors(tensors, {"format": "pt"}))
    else:
        torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, folder / weights)
    return folder


def contents(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(Path(folder).iterdir())}


def refused(load, folder, *words, kind=CheckpointError):
    """The error of `load`: of our kind, one line, with the path and the words; the folder stays as it is."""
    before = contents(folder)
    with pytest.raises(kind) as caught:
        load(folder)
    assert isinstance(caught.value, MobileViTHubError)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert caught.value.path
    for word in words:
        assert word in message
    assert contents(folder) == before
    return caught.value


def same_weights(model, tensors):
    state = arrays(model)
    assert set(state) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


# --------------------------------------------------------------------------------------------------
# Weights that do not fit
# --------------------------------------------------------------------------------------------------


@pytest.mark.alone
@VERSIONS
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_missing_weights_are_never_replaced_by_random_ones(tmp_path, version, weights):
    model = network(version)
    good = arrays(model)
    for names in (
        ["classifier.weight", "classifier.bias"],
        [CONV[version]],
        [VARIANCE[version]],
        [name for name in good if ".transformer." in name],
    ):
        tensors = {name: value for name, value in good.items() if name not in names}
        folder = put(tmp_path / "out", tensors, model.config, weights)
        lost = [name for name in names if not name.endswith("num_batches_tracked")]
        error = refused(CLASSES[version][0].from_pretrained, folder, f"{len(lost)} missing", sorted(lost)[0], weights)
        assert sorted(error.missing) == sorted(lost)
        assert not error.unexpected
        assert not error.mismatched
        assert sum(str(error).count(suffix) for suffix in (".weight", ".bias", ".running_", ".num_")) <= 5
        assert ("more" in str(error)) == (len(lost) > 5)


def test_a_missing_head_tells_how_to_get_a_new_one(tmp_path):
    model = network(1)
    tensors = {name: value for name, value in arrays(model).items() if not name.startswith("classifier.")}
    folder = put(tmp_path / "out", tensors, model.config)
    refused(CLASSES[1][0].from_pretrained, folder, "num_labels=")
    with pytest.warns(MobileViTHubWarning, match="7 labels is new"):
        loaded = CLASSES[1][0].from_pretrained(folder, num_labels=7)
    for name, value in tensors.items():
        np.testing.assert_array_equal(arrays(loaded)[name], value)


@VERSIONS
def test_renamed_weights_name_the_likely_family(tmp_path, version):
    model = network(version)
    renamed = {f"layer_1.{name}": value for name, value in arrays(model).items()}
    folder = put(tmp_path / "out", renamed, model.config)
    refused(CLASSES[version][0].from_pretrained, folder, "wrong model family?", "Apple's")
    refused(CLASSES[version][0].from_pretrained, put(tmp_path / "empty", {}, model.config), "wrong model family?")
    other = put(tmp_path / "other", arrays(network(3 - version)), model.config)
    name = "version 1" if version == 2 else "MobileViTv2"
    refused(CLASSES[version][0].from_pretrained, other, "wrong model family?", name)


@VERSIONS
def test_unexpected_weights_are_an_error(tmp_path, version):
    model = network(version)
    extra = {f"extra.{i}": np.zeros(1, np.float32) for i in range(8)}
    folder = put(tmp_path / "out", arrays(model) | extra, model.config)
    error = refused(CLASSES[version][0].from_pretrained, folder, "8 unexpected", "extra.0", "extra.4", "3 more")
    assert error.unexpected == sorted(extra)
    assert "extra.5" not in str(error)


def test_the_weights_of_a_deeper_network_do_not_load(tmp_path):
    deep = network(2, n_attn_blocks=[1, 2, 1])
    folder = put(tmp_path / "out", arrays(deep), tiny_config(2))
    error = refused(CLASSES[2][0].from_pretrained, folder, "unexpected")
    assert all("encoder.layer.3.transformer.layer.1." in name for name in error.unexpected)


@VERSIONS
def test_wrong_shapes_are_named_with_both_shapes(tmp_path, version):
    model = network(version)
    good = arrays(model)
    cases = {
        CONV[version]: np.swapaxes(good[CONV[version]][:, :-1], 0, 1),
        "classifier.weight": good["classifier.weight"].T,  # as many values, other axes
        VARIANCE[version]: good[VARIANCE[version]][:, None],
    }
    for name, wrong in cases.items():
        folder = put(tmp_path / "out", good | {name: np.ascontiguousarray(wrong)}, model.config)
        error = refused(
            CLASSES[version][0].from_pretrained, folder, name, str(list(wrong.shape)), str(list(good[name].shape))
        )
        assert len(error.mismatched) == 1


@VERSIONS
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_values_that_would_compute_nonsense_are_refused(tmp_path, version, weights):
    model = network(version)
    good = arrays(model)
    for name, value, word in (
        (CONV[version], np.nan, "NaN"),
        (CONV[version], np.inf, "infinity"),
        (VARIANCE[version], -1.0, "negative variance"),
    ):
        wrong = good[name].copy()
        wrong.flat[-1] = value
        folder = put(tmp_path / "out", good | {name: wrong}, model.config, weights)
        error = refused(CLASSES[version][0].from_pretrained, folder, name, word)
        assert error.field == name
    folder = put(tmp_path / "out", good | {CONV[version]: good[CONV[version]].astype(np.int32)}, model.config, weights)
    refused(CLASSES[version][0].from_pretrained, folder, CONV[version], "int32")


# --------------------------------------------------------------------------------------------------
# What may differ
# --------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_accepted_and_reported(tmp_path, version, weights, dtype):
    model = network(version)
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    folder = put(tmp_path / "out", {}, model.config)
    (folder / "model.safetensors").unlink()
    (save_torch_file if weights == "model.safetensors" else torch.save)(state, folder / weights)
    loaded, report = CLASSES[version][0].from_pretrained(folder, strict=False)
    same_weights(loaded, {n: t.float().numpy() if t.is_floating_point() else t.numpy() for n, t in state.items()})
    assert loaded.dtype == torch.float32
    known = torch.float32 if dtype == torch.bfloat16 else dtype  # NumPy has no bfloat16
    assert report == LoadReport(dtype=str(known).removeprefix("torch."))
    half = CLASSES[version][0].from_pretrained(folder, dtype="bfloat16")
    assert half.dtype == torch.bfloat16


@VERSIONS
def test_batch_counters_may_be_absent_or_have_an_axis(tmp_path, version):
    model = network(version)
    good = arrays(model)
    assert int(good[COUNTER[version]]) == 100
    absent = {name: value for name, value in good.items() if not name.endswith("num_batches_tracked")}
    folder = put(tmp_path / "out", absent, model.config)
    loaded = CLASSES[version][0].from_pretrained(folder)
    assert arrays(loaded)[COUNTER[version]] == 0
    folder = put(tmp_path / "out", good | {COUNTER[version]: np.array([100])}, model.config)
    same_weights(CLASSES[version][0].from_pretrained(folder), good)


@pytest.mark.alone
@VERSIONS
def test_classifier_and_base_model_load_each_others_folders(tmp_path, version):
    classifier, base, backbone = CLASSES[version]
    model, pixels = network(version), images(1, 64, 64)
    model.save_pretrained(tmp_path / "classifier")
    features = base.from_pretrained(tmp_path / "classifier")
    maps = backbone.from_pretrained(tmp_path / "classifier", out_features=["stage3", "stage5"])
    stages = list(backbone.stage_names)
    assert {"stage3", "stage5"} <= set(stages)
    with torch.no_grad():
        wanted = model(pixels, output_hidden_states=True)
        found = features(pixels)
        torch.testing.assert_close(model.classifier(found.pooler_output), wanted.logits, rtol=0, atol=0)
        third, fifth = maps(pixels).feature_maps
    torch.testing.assert_close(third, wanted.hidden_states[2], rtol=0, atol=0)
    torch.testing.assert_close(fifth, wanted.hidden_states[4], rtol=0, atol=0)

    features.save_pretrained(tmp_path / "base")
    refused(classifier.from_pretrained, tmp_path / "base", "classifier.bias", "num_labels=")
    with pytest.warns(MobileViTHubWarning, match="new"):
        back = classifier.from_pretrained(tmp_path / "base", num_labels=7)
    for name, value in arrays(model).items():
        if not name.startswith("classifier."):
            np.testing.assert_array_equal(arrays(back)[name], value)
    maps.save_pretrained(tmp_path / "backbone")
    again = backbone.from_pretrained(tmp_path / "backbone", out_features=["stage3", "stage5"])
    same_weights(again, arrays(maps))


# --------------------------------------------------------------------------------------------------
# New heads and partial loads, on purpose only
# --------------------------------------------------------------------------------------------------

NEW_HEADS = pytest.mark.parametrize(
    "head", [{"num_labels": 3}, {"id2label": {0: "a", 1: "b", 2: "c"}}, {"num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}}]
)  # fmt: skip


@pytest.mark.alone
@VERSIONS
@NEW_HEADS
def test_a_new_head_is_asked_for_and_said_once(tmp_path, version, head):
    model = network(version)
    model.save_pretrained(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.warns(MobileViTHubWarning, match="7 labels; the classifier for 3 labels is new") as caught:
        loaded = CLASSES[version][0].from_pretrained(tmp_path / "out", **head)
    assert len(caught) == 1
    assert loaded.config.num_labels == 3
    assert loaded.config.id2label == dict(enumerate("abc")) or "id2label" not in head
    assert loaded(images(1, 64, 64)).logits.shape == (1, 3)
    for name, value in arrays(model).items():
        if not name.startswith("classifier."):
            np.testing.assert_array_equal(arrays(loaded)[name], value, err_msg=name)
    assert contents(tmp_path / "out") == before
    loaded.save_pretrained(tmp_path / "new")
    same_weights(CLASSES[version][0].from_pretrained(tmp_path / "new"), arrays(loaded))


@VERSIONS
def test_as_many_labels_as_before_are_no_new_head(tmp_path, version):
    model = network(version)
    model.save_pretrained(tmp_path / "out")
    same_weights(CLASSES[version][0].from_pretrained(tmp_path / "out", num_labels=7), arrays(model))
    same_weights(
        CLASSES[version][0].from_pretrained(tmp_path / "out", id2label=dict(model.config.id2label)), arrays(model)
    )
    with pytest.warns(MobileViTHubWarning, match="new"):
        loaded = CLASSES[version][0].from_pretrained(tmp_path / "out", id2label={i: f"other {i}" for i in range(7)})
    assert not np.array_equal(arrays(loaded)["classifier.weight"], arrays(model)["classifier.weight"])


@VERSIONS
@NEW_HEADS
def test_a_new_head_frees_nothing_else(tmp_path, version, head):
    model = network(version)
    good = arrays(model)
    del good[CONV[version]]
    folder = put(tmp_path / "out", good, model.config)
    error = refused(lambda f: CLASSES[version][0].from_pretrained(f, **head), folder, CONV[version])
    assert error.missing == [CONV[version]]
    wrong = arrays(model)
    wrong[CONV[version]] = wrong[CONV[version]][:-1]
    refused(lambda f: CLASSES[version][0].from_pretrained(f, **head), put(folder, wrong, model.config), CONV[version])


@pytest.mark.parametrize("head", [
    {"num_labels": 4, "id2label": {0: "a", 1: "b"}}, {"id2label": {0: "a", 2: "b"}}, {"id2label": {"x": "a"}},
    {"id2label": ["a", "b"]}, {"num_labels": 0.5}, {"num_labels": -1},
])  # fmt: skip
def test_labels_that_contradict_themselves_are_refused(tmp_path, head):
    network(1).save_pretrained(tmp_path / "out")
    with pytest.raises(ConfigError):
        CLASSES[1][0].from_pretrained(tmp_path / "out", **head)


@VERSIONS
def test_partial_loads_return_a_report(tmp_path, version):
    model = network(version)
    good = arrays(model)
    wrong = good | {"extra": np.zeros(3, np.float32), "classifier.bias": np.zeros(9, np.float32)}
    del wrong[CONV[version]]
    folder = put(tmp_path / "out", wrong, model.config)
    refused(CLASSES[version][0].from_pretrained, folder)
    loaded, report = CLASSES[version][0].from_pretrained(folder, strict=False)
    assert report.missing == [CONV[version]]
    assert report.unexpected == ["extra"]
    assert report.mismatched == ["classifier.bias (found [9], expected [7])"]
    assert report.new_head == []
    for name, value in arrays(loaded).items():
        if name not in (CONV[version], "classifier.bias"):
            np.testing.assert_array_equal(value, good[name])


# --------------------------------------------------------------------------------------------------
# Folders
# --------------------------------------------------------------------------------------------------


@VERSIONS
def test_safetensors_win_over_a_pickle_beside_them(tmp_path, version):
    model, other = network(version), awake(network(version), seed=9)
    folder = put(tmp_path / "out", arrays(other), model.config, "pytorch_model.bin")
    same_weights(CLASSES[version][0].from_pretrained(folder), arrays(other))
    put(folder, arrays(model), model.config)
    same_weights(CLASSES[version][0].from_pretrained(folder), arrays(model))
    assert find_checkpoint(folder).weights_file == folder / "model.safetensors"


def test_incomplete_folders_say_what_is_missing(tmp_path):
    model = network(1)
    folder = put(tmp_path / "out", arrays(model), model.config)
    (folder / "config.json").rename(folder / "x.json")
    refused(mh.from_pretrained, folder, "no config.json", kind=ConfigError)
    (folder / "config.json").write_text("{}")
    refused(mh.from_pretrained, folder, "model_type is missing", kind=ConfigError)
    (folder / "x.json").rename(folder / "config.json")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    refused(mh.from_pretrained, folder, "model.safetensors", kind=NotFoundError)


@pytest.mark.parametrize(("name", "words"), [
    ("./no-such-folder", ["no folder"]),
    ("/no/such/folder", ["no folder"]),
    ("a/b/c", ["no folder"]),
    ("..\\windows", ["no folder"]),
    ("mobilevit-m", ["Unknown checkpoint", "mobilevit-"]),
    ("nul\0byte", []),
    ("x" * 5000, []),
    ("~no-such-user/x", []),
    ("", ["Unknown checkpoint"]),
    ("deeplabv3-mobilevit-s-voc", ["cannot be loaded", "not loadable yet"]),
])  # fmt: skip
def test_unknown_names_are_not_found(name, words):
    with pytest.raises(NotFoundError) as caught:
        mh.from_pretrained(name)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="is a file"):
        mh.from_pretrained(tmp_path / "model.safetensors")


def test_a_folder_wins_over_a_hub_id_and_this_is_said(tmp_path, monkeypatch):
    model = network(1)
    (tmp_path / "apple").mkdir()
    model.save_pretrained(tmp_path / "apple" / "mobilevit-small")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(MobileViTHubWarning, match="folder is used"):
        same_weights(CLASSES[1][0].from_pretrained("apple/mobilevit-small"), arrays(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_weights(CLASSES[1][0].from_pretrained("./apple/mobilevit-small"), arrays(model))


def test_the_class_must_fit_the_version(tmp_path):
    network(1).save_pretrained(tmp_path / "out")
    refused(CLASSES[2][0].from_pretrained, tmp_path / "out", "mobilevitv2", "'mobilevit'", kind=ConfigError)


def test_config_keys_that_choose_code_are_ignored(tmp_path):
    model = network(1)
    marker = tmp_path / "marker"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    data = model.config.to_dict() | {
        "auto_map": {"AutoModelForImageClassification": "evil.Model", "AutoConfig": "evil.Config"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "somebody/kernels",
    }
    folder = put(tmp_path / "out", arrays(model), data)
    (folder / "evil.py").write_text(code)
    with pytest.warns(MobileViTHubWarning, match="auto_map.*ignored") as caught:
        loaded = mh.from_pretrained(folder)
    assert any("trust_remote_code" in str(w.message) for w in caught)
    same_weights(loaded, arrays(model))
    assert loaded.config._attn_implementation in ("sdpa", "eager")
    assert not marker.exists()
    loaded.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not {"auto_map", "trust_remote_code", "_attn_implementation_internal"} & set(saved)


def test_config_fields_may_be_changed_on_loading(tmp_path):
    model = network(1)
    model.save_pretrained(tmp_path / "out")
    loaded = CLASSES[1][0].from_pretrained(tmp_path / "out", output_stride=16, attn_implementation="eager")
    assert loaded.config.output_stride == 16
    assert loaded.config._attn_implementation == "eager"
    same_weights(loaded, arrays(model))
    assert loaded(images(1, 64, 64), output_hidden_states=True).hidden_states[-1].shape[-1] == 4
    own = tiny_config(1, output_stride=8)
    assert CLASSES[1][0].from_pretrained(tmp_path / "out", config=own).config.output_stride == 8
    with pytest.raises(ConfigError, match="output_stride"):
        CLASSES[1][0].from_pretrained(tmp_path / "out", output_stride=12)


def test_nobody_trains_by_accident(tmp_path):
    network(1).train().save_pretrained(tmp_path / "out")
    assert not CLASSES[1][0].from_pretrained(tmp_path / "out").training


# --------------------------------------------------------------------------------------------------
# Exchange with transformers
# --------------------------------------------------------------------------------------------------

SOME = pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])


def logits(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).logits.numpy()


def check_reference(model, variant, case="logits_256x256"):
    case = reference.load_case(variant, case)
    case.check({"logits": logits(model, torch.from_numpy(case.input()))})


@pytest.mark.alone
@SOME
def test_our_folder_opens_in_stock_transformers(tmp_path, variant):
    config = mh.MobileViTConfig if variant == "mobilevit_xxs" else mh.MobileViTV2Config
    model = MODELS[config.model_type](config(**{k: v for k, v in reference.config(variant).items() if k not in ("model_type", "label2id")}))  # fmt: skip
    model.load_state_dict(to_torch(reference.state_dict(variant)))
    processor = mh.image_processor("mobilevit-xxs" if "v2" not in variant else "mobilevitv2-0.5")
    model.save_pretrained(tmp_path / "out", processor=processor, card="# card")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"

    stock, report = STOCK_MODELS[config.model_type][1].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    pixels = images(2, 256, 256)
    assert reference.figure(logits(stock, pixels), logits(model, pixels)) < 2e-5
    check_reference(stock, variant)

    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", use_fast=False)
    assert type(theirs).__module__.startswith("transformers.")
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    from PIL import Image

    np.testing.assert_array_equal(
        theirs(Image.fromarray(picture), return_tensors="np")["pixel_values"],
        processor(picture, return_tensors="np")["pixel_values"],
    )


@SOME
def test_a_stock_folder_opens_in_ours(tmp_path, variant):
    data = reference.config(variant)
    config, stock_class = STOCK_MODELS[data.pop("model_type")]
    stock = stock_class(config(**data))
    stock.load_state_dict(to_torch(reference.state_dict(variant)))
    stock.save_pretrained(tmp_path / "out")
    model = mh.from_pretrained(tmp_path / "out")
    assert type(model) is MODELS[model.config.model_type]
    pixels = images(2, 256, 256)
    assert reference.figure(logits(model, pixels), logits(stock, pixels)) < 2e-5
    check_reference(model, variant)
    # There and back: stock writes what it read from us.
    model.save_pretrained(tmp_path / "ours")
    stock_class.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "ours")
    same_weights(mh.from_pretrained(tmp_path / "ours"), arrays(model))


CURRENT = {
    "crop_size": {"height": 256, "width": 256}, "do_center_crop": True, "do_flip_channel_order": True,
    "do_rescale": True, "do_resize": True, "image_processor_type": "MobileViTImageProcessor", "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 288},
}  # fmt: skip
LEGACY = {
    "crop_size": 256, "do_center_crop": True, "do_flip_channels": True, "do_resize": True,
    "feature_extractor_type": "MobileViTFeatureExtractor", "resample": 2, "size": 288,
}  # fmt: skip


@SOME
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("processor", [CURRENT, LEGACY], ids=["current", "legacy"])
def test_folders_of_the_reference_kit_load(tmp_path, variant, weights, processor):
    folder = put(tmp_path / "out", reference.state_dict(variant), reference.config(variant), weights)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    check_reference(mh.from_pretrained(folder), variant)
    found = mh.image_processor(folder)
    assert found.size == {"shortest_edge": 288}
    assert (found.crop_size["height"], found.crop_size["width"]) == (256, 256)
    assert found.channel_order == "bgr"


# --------------------------------------------------------------------------------------------------
# timm
# --------------------------------------------------------------------------------------------------


def timm_folder(folder, variant, tensors=None, **changes):
    size = {
        "input_size": [3, 256, 256],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
    }
    data = {"architecture": variant, "num_classes": 1000, "num_features": 320, "pretrained_cfg": size} | changes
    return put(folder, reference.state_dict(variant, "timm") if tensors is None else tensors, data)


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_timm_folders_load_with_apples_channel_order(tmp_path, variant):
    folder = timm_folder(tmp_path / "out", variant)
    model = mh.from_pretrained(folder)
    same_weights(model, reference.state_dict(variant))
    assert model.config.id2label[0] == "tench"
    processor = mh.image_processor(folder)
    assert processor.channel_order == ("rgb" if "v2" in variant else "bgr")
    assert processor.size == {"shortest_edge": 284}
    assert processor.crop_size["height"] == 256
    assert processor.interpolation == "bicubic"
    if variant in ("mobilevit_xxs", "mobilevitv2_050"):
        check_reference(model, variant)


def test_a_timm_stem_that_is_not_turned_fails_by_far(tmp_path):
    tensors = reference.state_dict("mobilevit_xxs", "timm")
    tensors["stem.conv.weight"] = np.ascontiguousarray(tensors["stem.conv.weight"][:, ::-1])
    model = mh.from_pretrained(timm_folder(tmp_path / "out", "mobilevit_xxs", tensors))
    case = reference.load_case("mobilevit_xxs", "logits_256x256")
    ((figure, tolerance),) = case.compare({"logits": logits(model, torch.from_numpy(case.input()))}).values()
    assert figure > 1000 * tolerance


@SOME
def test_timm_folders_are_read_strictly(tmp_path, variant):
    good = reference.state_dict(variant, "timm")
    gone = {name: value for name, value in good.items() if name != "stages.2.1.conv_1x1.weight"}
    error = refused(mh.from_pretrained, timm_folder(tmp_path / "out", variant, gone), "stages.2.1.conv_1x1.weight")
    assert error.missing == ["stages.2.1.conv_1x1.weight"]
    more = good | {"stages.9.x": np.zeros(1, np.float32)}
    error = refused(mh.from_pretrained, timm_folder(tmp_path / "out", variant, more), "stages.9.x")
    assert error.unexpected == ["stages.9.x"]
    bad = good | {"stem.conv.weight": good["stem.conv.weight"][:, :2]}
    refused(mh.from_pretrained, timm_folder(tmp_path / "out", variant, bad), "stem.conv.weight")
    refused(mh.from_pretrained, timm_folder(tmp_path / "out", "resnet50", good), "'resnet50'", kind=ConfigError)
    refused(mh.from_pretrained, timm_folder(tmp_path / "out", variant, good, architecture=["x"]), kind=ConfigError)
    refused(mh.from_pretrained, timm_folder(tmp_path / "out", variant, good, num_classes="x"), kind=ConfigError)
    counters = {name: value for name, value in good.items() if not name.endswith("num_batches_tracked")}
    mh.from_pretrained(timm_folder(tmp_path / "out", variant, counters))


def test_a_timm_folder_takes_a_new_head_or_none(tmp_path):
    folder = timm_folder(tmp_path / "out", "mobilevitv2_050")
    with pytest.warns(MobileViTHubWarning, match="1000 labels; the classifier for 5"):
        assert mh.from_pretrained(folder, num_labels=5).config.num_labels == 5
    assert type(mh.from_pretrained(folder, task="backbone")) is mh.MobileViTV2Backbone
    assert load_config(find_checkpoint(folder)).width_multiplier == 0.5
