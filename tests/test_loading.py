"""`from_pretrained` of both twins: each argument is obeyed or refused, by both alike."""

from pathlib import Path

import numpy as np
import pytest
import transformers

import mobilevit_hub as mh
from mobilevit_hub.errors import ConfigError, InputError, MobileViTHubWarning, NotFoundError
from mobilevit_hub.hub.find import find_checkpoint

NAME = "mobilevit-xxs-tiny-imagenet"
LABELS = {i: f"class {i}" for i in range(200)}
BOTH = pytest.mark.parametrize(
    "framework", [pytest.param("pt", marks=pytest.mark.torch), pytest.param("tf", marks=pytest.mark.tf)]
)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load(framework, task="image-classification", name=NAME, **options):
    """A model of version 1, loaded by its class."""
    from mobilevit_hub.models import model_class

    return model_class("mobilevit", framework, task).from_pretrained(name, **options)


def tensors(model):
    """Every weight by its name in the checkpoint."""
    if hasattr(model, "named_weights"):
        return model.checkpoint_tensors()
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def number_type(model):
    """Name of the number type of the stem's weights."""
    if hasattr(model, "named_weights"):
        return str(model.named_weights()["mobilevit.conv_stem.convolution.weight"].variable.dtype)
    return str(model.mobilevit.conv_stem.convolution.weight.dtype).removeprefix("torch.")


def config(**changes):
    return mh.MobileViTConfig.from_pretrained(NAME, **changes)


OBEYED = [
    ("image-classification", lambda: {"config": config(output_stride=16)}, lambda m: m.config.output_stride == 16),
    ("image-classification", lambda: {"config": config(num_labels=5)}, lambda m: m.config.num_labels == 5),
    ("image-classification", lambda: {"config": transformers.MobileViTConfig.from_pretrained(Path(mh.__file__).parent / "assets" / NAME)},
     lambda m: type(m.config) is mh.MobileViTConfig),
    ("image-classification", lambda: {"output_stride": 8}, lambda m: m.config.stage_strides[-1] == 8),
    ("image-classification", lambda: {"classifier_dropout_prob": 0.5}, lambda m: m.config.classifier_dropout_prob == 0.5),
    ("image-classification", lambda: {"image_size": 64}, lambda m: m.config.image_size == 64),
    ("image-classification", lambda: {"num_labels": 200}, lambda m: m.config.id2label[0].startswith("goldfish")),
    ("image-classification", lambda: {"num_labels": 3}, lambda m: tensors(m)["classifier.weight"].shape[0] == 3),
    ("image-classification", lambda: {"id2label": {0: "a", 1: "b"}}, lambda m: m.config.label2id == {"a": 0, "b": 1}),
    ("image-classification", lambda: {"id2label": LABELS}, lambda m: m.config.id2label == LABELS),
    ("image-classification", lambda: {"dtype": "bfloat16"}, lambda m: number_type(m) == "bfloat16"),
    ("image-classification", lambda: {"dtype": "auto"}, lambda m: number_type(m) == "float32"),
    ("image-classification", lambda: {"dtype": np.dtype("float16")}, lambda m: number_type(m) == "float16"),
    ("image-classification", lambda: {"torch_dtype": "float16"}, lambda m: number_type(m) == "float16"),
    ("image-classification", lambda: {"attn_implementation": "eager"}, lambda m: number_type(m) == "float32"),
    ("image-classification", lambda: {"strict": False}, lambda m: m[1].missing == [] and m[1].unexpected == []),
    ("image-classification", lambda: {"local_files_only": True, "revision": "v1", "token": False}, lambda m: m.config.num_labels == 200),
    ("features", dict, lambda m: not any("classifier" in name for name in tensors(m))),
    ("backbone", dict, lambda m: m.out_features == m.config.out_features == ["stage5"]),
    ("backbone", lambda: {"out_features": ["stage4", "stem"]}, lambda m: m.config.out_features == ["stem", "stage4"]),
    ("backbone", lambda: {"out_indices": [3, -1]}, lambda m: m.out_features == ["stage3", "stage5"] and m.strides == [8, 32]),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("task", "options", "holds"), OBEYED)
@pytest.mark.filterwarnings("ignore::mobilevit_hub.errors.MobileViTHubWarning")
def test_what_both_obey(framework, task, options, holds):
    assert holds(load(framework, task, **options()))


REFUSED = [
    ("image-classification", lambda: {"num_label": 10}, InputError, "no argument 'num_label'.*Did you mean 'num_labels'"),
    ("image-classification", lambda: {"device_map": "auto"}, InputError, "no argument 'device_map'"),
    ("image-classification", lambda: {"out_indices": [1]}, InputError, "no argument 'out_indices'.*backbones"),
    ("features", lambda: {"out_features": ["stage5"]}, InputError, "no argument 'out_features'.*backbones"),
    ("backbone", lambda: {"out_features": ["stage9"]}, InputError, "out_features has 'stage9'; expected names from stem"),
    ("backbone", lambda: {"out_indices": ["stem"]}, InputError, "expected numbers from 0"),
    ("backbone", lambda: {"out_indices": [True]}, InputError, "expected numbers from 0"),
    ("image-classification", lambda: {"attn_implementation": "kernels-community/x"}, InputError, "expected 'sdpa' or 'eager'"),
    ("backbone", lambda: {"out_indices": [6]}, InputError, "expected numbers from 0"),
    ("backbone", lambda: {"out_indices": [1], "out_features": ["stem"]}, InputError, "not both"),
    ("image-classification", lambda: {"config": config(), "num_labels": 4}, InputError, "either config= or single changes"),
    ("image-classification", lambda: {"config": config(), "id2label": {0: "a"}}, InputError, "either config= or single changes"),
    ("image-classification", lambda: {"config": config(), "output_stride": 8}, InputError, "either config= or single changes"),
    ("image-classification", lambda: {"config": {"output_stride": 8}}, InputError, "config is dict; expected a config"),
    ("image-classification", lambda: {"config": mh.MobileViTV2Config()}, ConfigError, "TFMobileViT|MobileViT.* is a mobilevit network"),
    ("image-classification", lambda: {"output_stride": 12}, ConfigError, "output_stride is 12; expected one of 8, 16, 32"),
    ("image-classification", lambda: {"id2label": {1: "a"}}, ConfigError, "id2label has 1 labels but no label 0"),
    ("image-classification", lambda: {"num_labels": 3, "id2label": {0: "a"}}, ConfigError, "num_labels=3 but id2label has 1"),
    ("image-classification", lambda: {"dtype": "int8"}, InputError, "expected float32, float16 or bfloat16"),
    ("image-classification", lambda: {"torch_dtype": "Tensor"}, InputError, "expected float32, float16 or bfloat16"),
    ("image-classification", lambda: {"attn_implementation": "flash_attention_2"}, InputError, "expected 'sdpa' or 'eager'"),
    ("image-classification", lambda: {"image_size": 8}, ConfigError, "image_size is 8; expected an integer from 32"),
    ("image-classification", lambda: {"name": "./nowhere"}, NotFoundError, "no folder './nowhere'"),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("task", "options", "kind", "message"), REFUSED)
def test_what_both_refuse(framework, task, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load(framework, task, **options())
    assert "\n" not in str(caught.value)


@BOTH
def test_what_was_found_travels_on(framework, tmp_path):
    """A found checkpoint is opened without looking its name up again."""
    load(framework).save_pretrained(tmp_path / "m")
    checkpoint = find_checkpoint(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError):
        load(framework, name=tmp_path / "m")
    (tmp_path / "elsewhere").rename(tmp_path / "m")
    again = tensors(load(framework, name=checkpoint))
    assert all(np.array_equal(value, again[name]) for name, value in tensors(load(framework)).items())


@BOTH
def test_a_new_classifier_is_said_once(framework):
    with pytest.warns(
        MobileViTHubWarning, match="classifies 200 labels; the classifier for other labels is new"
    ) as said:
        load(framework, id2label=LABELS)
    assert len([w for w in said if issubclass(w.category, MobileViTHubWarning)]) == 1
