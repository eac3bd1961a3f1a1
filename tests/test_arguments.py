"""Arguments of the public calls: each is obeyed or refused, none is ignored."""

import numpy as np
import pytest
import torch
import transformers
from networks import tiny_config

import mobilevit_hub as mh
from mobilevit_hub.errors import ConfigError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.images.processor import MobileViTImageProcessor, processor_for

pytestmark = pytest.mark.torch


def classifier(version):
    torch.manual_seed(version)
    config = tiny_config(version)
    cls = mh.MobileViTForImageClassification if version == 1 else mh.MobileViTV2ForImageClassification
    return cls(config).eval()


@pytest.fixture
def folder(tmp_path):
    classifier(1).save_pretrained(tmp_path / "m", processor=processor_for(72, 64, "bilinear", "bgr"), card="# Card\n")
    return tmp_path / "m"


load = mh.MobileViTForImageClassification.from_pretrained


def test_config_excludes_single_changes_and_stays_the_callers(folder):
    config = mh.MobileViTConfig.from_pretrained(folder)
    for change in ({"num_labels": 10}, {"output_stride": 8}, {"id2label": {0: "a"}}):
        with pytest.raises(InputError, match="either config= or single changes"):
            load(folder, config=config, **change)
    before = config.to_dict()
    model = load(folder, config=config)
    assert model.config is not config and config.to_dict() == before


def test_a_stock_config_is_taken_over(folder):
    stock = transformers.MobileViTConfig.from_pretrained(folder)
    model = load(folder, config=stock)
    assert isinstance(model.config, mh.MobileViTConfig)
    with pytest.raises(ConfigError, match="needs a mobilevit_hub MobileViTConfig, got transformers's MobileViTConfig"):
        mh.MobileViTModel(transformers.MobileViTConfig())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [torch.float16, "float16", "torch.float16"])
def test_number_type(folder, name, value):
    assert next(load(folder, **{name: value}).parameters()).dtype == torch.float16


# --- backbones ----------------------------------------------------------------------------------------------------


def test_chosen_maps_are_saved(folder, tmp_path):
    mh.MobileViTBackbone.from_pretrained(folder, out_features=["stage2", "stage4"]).save_pretrained(tmp_path / "b")
    assert mh.MobileViTBackbone.from_pretrained(tmp_path / "b").out_features == ["stage2", "stage4"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_segmentation_framework_drives_the_backbone(version):
    """UperNet calls a backbone as transformers' own models do; here one of ours takes its backbone's place."""
    config = tiny_config(version)
    cls = mh.MobileViTBackbone if version == 1 else mh.MobileViTV2Backbone
    backbone = cls(config, out_features=["stage2", "stage3", "stage4", "stage5"]).eval()
    stock = transformers.UperNetConfig(
        backbone_config=transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=backbone.channels, depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=backbone.channels[2], num_labels=5,
    )  # fmt: skip
    upernet = transformers.UperNetForSemanticSegmentation(stock).eval()
    upernet.backbone = backbone
    with torch.no_grad():
        logits = upernet(torch.rand(1, 3, 128, 128)).logits
    assert logits.shape == (1, 5, 128, 128) and torch.isfinite(logits).all()
    maps = backbone.forward_with_filtered_kwargs(torch.rand(1, 3, 128, 128), output_attentions=False, nonsense=1)
    assert [m.shape[1] for m in maps.feature_maps] == [backbone.out_feature_channels[n] for n in backbone.out_features]
    assert backbone.num_features == list(config.stage_channels)


# --- config and processor by name ------------------------------------------------------------------------------------


def test_config_by_name(folder):
    assert mh.MobileViTConfig.from_pretrained("mobilevit-xxs-tiny-imagenet").num_labels == 200
    assert mh.MobileViTConfig.from_pretrained(folder, output_stride=16).output_stride == 16
    with pytest.raises(ConfigError, match="MobileViTV2Config describes mobilevitv2 networks"):
        mh.MobileViTV2Config.from_pretrained(folder)
    with pytest.raises(NotFoundError, match="Did you mean 'mobilevit-s'"):
        mh.MobileViTConfig.from_pretrained("mobilvit-s")


def test_processor_by_name(folder, tmp_path):
    assert MobileViTImageProcessor.from_pretrained("mobilevit-s").channel_order == "bgr"  # the record; no network
    assert MobileViTImageProcessor.from_pretrained(folder).crop_size["height"] == 64
    processor_for(40, 32, "bicubic", "rgb").save_pretrained(tmp_path / "p")
    alone = MobileViTImageProcessor.from_pretrained(tmp_path / "p")
    assert (dict(alone.size), alone.interpolation) == ({"shortest_edge": 40}, "bicubic")
    with pytest.raises(NotFoundError, match="Did you mean 'mobilevit-s'"):
        MobileViTImageProcessor.from_pretrained("mobilvit-s")


def test_the_record_of_a_checkpoint_without_a_repository_still_has_its_preprocessing():
    processor = mh.image_processor("mobilevitv2-0.5-384")
    assert (dict(processor.size), processor.crop_size["height"]) == ({"shortest_edge": 384}, 384)


def test_a_384_folder_without_a_processor_is_not_cropped(tmp_path):
    model = classifier(2)
    model.config.image_size = 384
    model.save_pretrained(tmp_path / "m")
    with pytest.warns(MobileViTHubWarning, match="short side 384, crop 384, RGB"):
        processor = mh.image_processor(tmp_path / "m")
    assert dict(processor.size) == {"shortest_edge": 384}


# --- prediction and saving --------------------------------------------------------------------------------------------


def test_predict_takes_batches_and_iterators(folder, rng):
    batch = rng.integers(0, 256, (3, 80, 80, 3), dtype=np.uint8)
    expected = [result["predictions"] for result in mh.predict(list(batch), folder)]
    assert len(expected) == 3
    assert [result["predictions"] for result in mh.predict(batch, folder)] == expected
    assert [result["predictions"] for result in mh.predict(iter(batch), folder)] == expected
    for wrong in (0, 2.5, "3"):
        with pytest.raises(InputError, match="expected a whole number from 1"):
            mh.predict(batch, folder, top_k=wrong)


def test_saving_another_network_warns_about_the_files_that_stay(folder):
    with pytest.warns(MobileViTHubWarning, match=r"preprocessor_config.json and README.md of the earlier checkpoint"):
        classifier(2).save_pretrained(folder)
    classifier(2).save_pretrained(folder, processor=processor_for(72, 64, "bicubic", "rgb"), card="# New\n")
    classifier(2).save_pretrained(folder)  # the same network again: nothing to warn about
    assert mh.image_processor(folder).channel_order == "rgb"
