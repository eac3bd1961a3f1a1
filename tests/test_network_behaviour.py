"""How the networks behave: attention, checkpointing, losses, backbones, initialisation, refused inputs."""

import copy
import math

import pytest
import torch
from networks import MODELS, images, logits, tiny, tiny_config
from reference import figure
from torch import nn
from torch.nn import functional as F

from mobilevit_hub.errors import ConfigError, InputError
from mobilevit_hub.pt.mobilevit import MobileViTBackbone, MobileViTForImageClassification, MobileViTModel
from mobilevit_hub.pt.mobilevitv2 import MobileViTV2Backbone, MobileViTV2Model

VERSIONS = pytest.mark.parametrize("version", [1, 2])
BACKBONES = {1: MobileViTBackbone, 2: MobileViTV2Backbone}


# --------------------------------------------------------------------------------------------------
# Attention implementations, gradient checkpointing, losses, outputs
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (72, 101)])
def test_eager_and_fused_attention_are_equal(size):
    model, pixels, results = tiny(1), images(2, *size).double(), {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        output = model(pixels, labels=torch.tensor([1, 4]))
        output.loss.backward()
        results[implementation] = [output.logits.detach(), *(p.grad.clone() for p in model.parameters())]
    for eager, fused in zip(results["eager"], results["sdpa"], strict=True):
        # The key bias has no influence: softmax does not see a constant.
        assert torch.allclose(eager, fused, rtol=1e-9, atol=1e-12)


def test_both_attention_implementations_are_used():
    model, pixels = tiny(1), images(1, 64, 64).double()
    assert model.config._attn_implementation == "sdpa"
    for implementation, operation in (("eager", "aten::_softmax"), ("sdpa", "aten::scaled_dot_product_attention")):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.profiler.profile(acc_events=True) as profile:
            model(pixels)
        assert operation in {event.key for event in profile.key_averages()}, implementation


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # renamed in transformers 5.23
@VERSIONS
def test_gradient_checkpointing_changes_no_gradient_and_no_statistic(version):
    model, pixels = tiny(version, hidden_dropout_prob=0.0, classifier_dropout_prob=0.0), images(2, 64, 72).double()
    twin, runs = copy.deepcopy(model), []
    twin.gradient_checkpointing_enable()
    for network in (model, twin):
        network.train()
        attention = network.base_model.encoder.layer[2].transformer.layer[0].attention
        attention.register_forward_hook(lambda *_, network=network: runs.append(network))
        network(pixels, labels=torch.tensor([1, 4])).loss.backward()
    assert (runs.count(model), runs.count(twin)) == (1, 2)  # the twin computed the layer again
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-9, atol=1e-12)
    for one, two in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, two)  # BatchNorm saw each batch once


@VERSIONS
def test_losses_and_outputs(version):
    model, pixels = tiny(version), images(3, 64, 64).double()
    scores = logits(model, pixels)
    labels = torch.tensor([0, 3, 6])
    assert torch.allclose(model(pixels, labels=labels).loss, F.cross_entropy(scores, labels))
    several = torch.tensor([[1.0, 0, 1, 0, 0, 0, 1]] * 3, dtype=torch.float64)
    model.config.problem_type = "multi_label_classification"
    assert torch.allclose(model(pixels, labels=several).loss, F.binary_cross_entropy_with_logits(scores, several))
    assert model(pixels).loss is None and model(pixels).hidden_states is None
    as_tuple = model(pixels, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[0], scores) and len(as_tuple[1]) == 5
    base = model.base_model(pixels)
    assert torch.allclose(base.pooler_output, base.last_hidden_state.mean(dim=(2, 3)))
    assert torch.allclose(scores, model.classifier(base.pooler_output))


@VERSIONS
def test_without_labels_the_classifier_returns_the_pooled_features(version):
    model, pixels = tiny(version, num_labels=0), images(1, 64, 64).double()
    assert torch.equal(logits(model, pixels), model.base_model(pixels).pooler_output)


@VERSIONS
def test_images_of_a_batch_do_not_influence_each_other(version):
    model, pixels = tiny(version), images(3, 72, 64).double()
    alone = torch.cat([logits(model, pixels[i : i + 1]) for i in range(3)])
    assert figure(logits(model, pixels), alone) < 1e-12


@VERSIONS
def test_memory_format_does_not_matter(version):
    model, pixels = tiny(version), images(2, 72, 64).double()
    expected = logits(model, pixels)
    model = model.to(memory_format=torch.channels_last)
    assert figure(logits(model, pixels.to(memory_format=torch.channels_last)), expected) < 1e-12


# --------------------------------------------------------------------------------------------------
# Backbones
# --------------------------------------------------------------------------------------------------

NAMES = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]


@VERSIONS
@pytest.mark.parametrize("output_stride", [8, 32])
def test_a_backbone_returns_the_maps_it_names(version, output_stride):
    classifier = tiny(version, output_stride=output_stride)
    backbone = BACKBONES[version](classifier.config, out_features=["stage5", "stem", "stage3"]).double().eval()
    prefix = classifier.base_model_prefix
    own = {f"{prefix}.{k}": v for k, v in classifier.base_model.state_dict().items() if "conv_1x1_exp" not in k}
    backbone.load_state_dict(own, strict=True)
    pixels = images(2, 64, 128).double()
    with torch.no_grad():
        output = backbone(pixels, output_hidden_states=True)
        stages = classifier(pixels, output_hidden_states=True).hidden_states
        everything = [classifier.base_model.conv_stem(pixels), *stages]
    assert backbone.stage_names == tuple(NAMES)
    assert backbone.out_features == ["stem", "stage3", "stage5"] and backbone.out_indices == [0, 3, 5]
    assert len(output.feature_maps) == 3 and len(output.hidden_states) == 6
    for index, features, channels, stride in zip(
        backbone.out_indices, output.feature_maps, backbone.channels, backbone.strides, strict=True
    ):
        assert torch.equal(features, everything[index])
        assert features.shape == (2, channels, 64 // stride, 128 // stride)
    assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, everything, strict=True))


@VERSIONS
def test_a_backbone_returns_the_last_map_by_default_and_refuses_unknown_names(version):
    backbone = BACKBONES[version](tiny_config(version))
    assert backbone.out_features == ["stage5"] and backbone.strides == [32]
    assert len(backbone(images(1, 64, 64), return_dict=False)[0]) == 1
    with pytest.raises(InputError, match="'stage6'; expected names from stem, stage1"):
        BACKBONES[version](tiny_config(version), out_features=["stage6"])


# --------------------------------------------------------------------------------------------------
# Initialisation
# --------------------------------------------------------------------------------------------------


def modules(model, kind):
    found = {name: module for name, module in model.named_modules() if isinstance(module, kind)}
    assert found
    return found.items()


@VERSIONS
def test_fresh_norms_scale_by_one(version):
    """Stock transformers starts BatchNorm scales near 0, from which nothing learns."""
    model = MODELS[tiny_config(version).model_type](tiny_config(version))
    for name, norm in modules(model, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.bias.any(), name
        assert norm.eps == 1e-5
    for _, norm in modules(model, nn.BatchNorm2d):
        assert not norm.running_mean.any() and torch.equal(norm.running_var, torch.ones_like(norm.running_var))
        assert norm.momentum == 0.1 and norm.num_batches_tracked == 0


def _spread(values, std):
    """The sample's standard deviation is within 5 standard errors of a normal one's, its mean near 0."""
    n = values.numel()
    return abs(values.std() / std - 1) < 5 / math.sqrt(2 * n) and abs(values.mean()) < 5 * std / math.sqrt(n)


def test_version_1_starts_like_apples_first_release():
    model = MobileViTForImageClassification(tiny_config(1, initializer_range=0.02, hidden_sizes=[48, 64, 80]))
    for name, conv in modules(model, nn.Conv2d):
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()  # of all channels, depthwise too
        assert _spread(conv.weight, math.sqrt(2 / fan_out)), name
        assert conv.bias is None
    for name, linear in modules(model, nn.Linear):
        assert _spread(linear.weight, 0.02), name
        assert not linear.bias.any(), name


def test_the_standard_deviation_is_a_field():
    model = MobileViTForImageClassification(tiny_config(1, initializer_range=0.1))
    assert _spread(model.classifier.weight, 0.1)


def test_version_2_starts_like_apples_later_releases():
    config = tiny_config(2)
    model = MODELS[config.model_type](config)
    for name, conv in modules(model, nn.Conv2d):
        bound = 1 / math.sqrt(conv.weight[0].numel())
        for values in [conv.weight] if conv.bias is None else [conv.weight, conv.bias]:
            assert values.abs().max() <= bound, name
            assert values.abs().max() > bound * 0.85 and values.std() > 0.3 * bound, name
    bound = math.sqrt(6 / (model.classifier.in_features + model.classifier.out_features))
    assert bound * 0.95 < model.classifier.weight.abs().max() <= bound
    assert not model.classifier.bias.any()


@VERSIONS
def test_a_fresh_network_passes_gradients_to_every_parameter(version):
    model = MODELS[tiny_config(version).model_type](tiny_config(version)).train()
    model(images(4, 64, 64), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    still = [name for name, p in model.named_parameters() if not p.grad.abs().max() > 0]
    assert not [name for name in still if "key.bias" not in name]


# --------------------------------------------------------------------------------------------------
# What is not an image
# --------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.rand(3, 64, 64), r"shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        (torch.rand(1, 64, 64, 3), "looks channels-last"),
        (torch.rand(1, 1, 64, 64), r"shape \(1, 1, 64, 64\)"),
        (torch.rand(1, 4, 64, 64), r"shape \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "dtype torch.uint8; expected floats in"),
        (torch.rand(1, 3, 31, 64), "31×64 pixels are too small; MobileViT needs at least 32"),
        (torch.rand(1, 3, 64, 1), "64×1 pixels are too small"),
        (torch.rand(0, 3, 64, 64), "no image"),
        ([[0.5]], "is list; expected a float tensor"),
        (None, "is NoneType"),
    ],
)
def test_what_is_not_an_image_is_refused(version, value, message):
    config = tiny_config(version)
    for model in (
        MODELS[config.model_type](config).eval(),
        (MobileViTModel, MobileViTV2Model)[version - 1](config).eval(),
        BACKBONES[version](config).eval(),
    ):
        with pytest.raises(InputError, match=message) as caught:
            model(value)
        assert caught.value.field == "pixel_values" and "\n" not in str(caught.value)


def test_images_may_have_other_channels():
    assert logits(tiny(1, num_channels=1), torch.rand(1, 1, 64, 64, dtype=torch.float64)).shape == (1, 7)


def test_a_config_changed_to_nonsense_is_refused_when_the_network_is_built():
    config = tiny_config(1)
    config.num_attention_heads = 5
    with pytest.raises(ConfigError, match="num_attention_heads"):
        MobileViTForImageClassification(config)
