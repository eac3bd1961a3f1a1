"""The parts of the PyTorch networks: patches, output stride, and the knobs that change a network."""

import copy
import math
from pathlib import Path

import pytest
import torch
from networks import MODELS, images, logits, tiny, tiny_config
from reference import figure
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import mobilevit_hub.pt
from mobilevit_hub.errors import InputError
from mobilevit_hub.pt.layers import fold_patches, resize_to_patch_multiple, unfold_patches
from mobilevit_hub.pt.mobilevitv2 import TokenLayerNorm

VERSIONS = pytest.mark.parametrize("version", [1, 2])


# --------------------------------------------------------------------------------------------------
# Patches
# --------------------------------------------------------------------------------------------------

MAPS = [(patch, rows * patch, columns * patch) for patch in (1, 2, 3, 4) for rows, columns in ((1, 1), (3, 5), (4, 2))]
FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])


@FORMATS
@pytest.mark.parametrize(("patch", "height", "width"), MAPS)
def test_unfolding_follows_the_index_formula(patch, height, width, memory_format):
    """Pixel (y, x) is at place (y mod p)·p + x mod p of patch (y div p)·(W/p) + x div p."""
    features = torch.arange(2 * 3 * height * width, dtype=torch.float64).reshape(2, 3, height, width)
    tokens = unfold_patches(features.to(memory_format=memory_format), patch)
    assert tokens.shape == (2, patch**2, height * width // patch**2, 3)
    for y in range(height):
        for x in range(width):
            place, index = y % patch * patch + x % patch, y // patch * (width // patch) + x // patch
            assert torch.equal(tokens[:, place, index], features[:, :, y, x])


@FORMATS
@pytest.mark.parametrize(("patch", "height", "width"), MAPS)
def test_folding_is_the_inverse_of_unfolding(patch, height, width, memory_format):
    features = torch.randn(2, 5, height, width).to(memory_format=memory_format)
    tokens = unfold_patches(features, patch)
    assert torch.equal(fold_patches(tokens, patch, height, width), features)
    other = torch.randn(tokens.shape)
    assert torch.equal(unfold_patches(fold_patches(other, patch, height, width), patch), other)


@pytest.mark.parametrize(("patch", "height", "width"), MAPS)
def test_unfolding_is_pytorchs_unfold(patch, height, width):
    features = torch.randn(2, 5, height, width)
    columns = F.unfold(features, patch, stride=patch)
    expected = columns.reshape(2, 5, patch**2, -1).permute(0, 2, 3, 1)
    assert torch.equal(unfold_patches(features, patch), expected)


@pytest.mark.parametrize(("size", "patch", "new"), [((7, 8), 2, (8, 8)), ((5, 7), 3, (6, 9)), ((1, 1), 4, (4, 4))])
@pytest.mark.parametrize("align_corners", [True, False])
def test_an_odd_map_is_enlarged_to_the_next_multiple(size, patch, new, align_corners):
    ramp = torch.arange(size[0], dtype=torch.float64)[:, None].expand(size)[None, None]
    resized = resize_to_patch_multiple(ramp, patch, align_corners=align_corners)
    assert resized.shape[-2:] == new
    last = (size[0] - 1) / max(new[0] - 1, 1) if align_corners else size[0] / new[0]
    expected = [y * last if align_corners else min(max((y + 0.5) * last - 0.5, 0), size[0] - 1) for y in range(new[0])]
    assert torch.allclose(resized[0, 0, :, 0], torch.tensor(expected, dtype=torch.float64))


def test_a_map_of_whole_patches_is_left_alone():
    features = torch.randn(1, 2, 6, 9)
    assert resize_to_patch_multiple(features, 3, align_corners=True) is features


class _HighestRank(TorchDispatchMode):
    rank = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.rank = max(self.rank, tensor.dim())
        return result


@VERSIONS
@pytest.mark.parametrize("size", [(64, 64), (72, 101)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_tensor_has_more_than_four_dimensions(version, size, implementation):
    """Core ML and TFLite accelerators stop at four."""
    model = tiny(version)
    model.set_attn_implementation(implementation)
    with torch.no_grad(), _HighestRank() as seen:
        model(images(1, *size).double())
        assert seen.rank == 4
        torch.zeros(1, 1, 1, 1, 1)
        assert seen.rank == 5  # the watcher sees what it should


def test_the_source_uses_no_operation_that_exporters_refuse():
    for path in Path(mobilevit_hub.pt.__file__).parent.glob("*.py"):
        source = path.read_text("utf-8")
        assert not [name for name in ("F.unfold", "F.fold", "nn.Unfold", "nn.Fold", "expand_as") if name in source], (
            path
        )


# --------------------------------------------------------------------------------------------------
# Output stride
# --------------------------------------------------------------------------------------------------

# Per output stride: stride and dilation of the opening depthwise convolution, then dilation of the
# block's local convolution, for stages 3, 4 and 5.
RULES = {
    (1, 32): ((2, 1, 1), (2, 1, 1), (2, 1, 1)),
    (1, 16): ((2, 1, 1), (2, 1, 1), (1, 1, 1)),
    (1, 8): ((2, 1, 1), (1, 1, 1), (1, 2, 1)),
    (2, 32): ((2, 1, 1), (2, 1, 1), (2, 1, 1)),
    (2, 16): ((2, 1, 1), (2, 1, 1), (1, 1, 2)),
    (2, 8): ((2, 1, 1), (1, 1, 2), (1, 2, 4)),
}


@pytest.mark.parametrize(("version", "output_stride"), RULES)
def test_strides_and_dilations(version, output_stride):
    model = tiny(version, output_stride=output_stride)
    dilated = {}
    for stage, (stride, opening, local) in enumerate(RULES[version, output_stride], 3):
        block = model.base_model.encoder.layer[stage - 1]
        depthwise, convolution = block.downsampling_layer.conv_3x3.convolution, block.conv_kxk.convolution
        assert (depthwise.stride, depthwise.dilation, depthwise.padding) == (
            (stride,) * 2,
            (opening,) * 2,
            (opening,) * 2,
        )
        assert (convolution.stride, convolution.dilation, convolution.padding) == ((1, 1), (local,) * 2, (local,) * 2)
        assert convolution.groups == (1 if version == 1 else convolution.in_channels)
        dilated |= {depthwise: opening, convolution: local}
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in dilated]
    assert {m.dilation for m in others} == {(1, 1)}  # the fusion convolution of version 1 too


@VERSIONS
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (65, 97)])
def test_sizes_of_the_maps(version, output_stride, size):
    model = tiny(version, output_stride=output_stride)
    with torch.no_grad():
        output = model(images(1, *size).double(), output_hidden_states=True)
    even = version == 2  # version 2 keeps what it enlarged
    height, width = (math.ceil(s / 2) for s in size)
    for stage, (features, stride) in enumerate(
        zip(output.hidden_states, model.config.stage_strides[1:], strict=True), 1
    ):
        if stage > 1 and stride > model.config.stage_strides[stage - 1]:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        if even and stage >= 3:
            height, width = height + height % 2, width + width % 2
        assert features.shape[-2:] == (height, width), stage


@pytest.mark.parametrize("version", [1, 2])
def test_dropping_a_dilation_shows(version):
    model, pixels = tiny(version, output_stride=8), images(1, 64, 64).double()
    expected = logits(model, pixels)
    changed = copy.deepcopy(model)
    convolution = changed.base_model.encoder.layer[4].downsampling_layer.conv_3x3.convolution
    convolution.dilation = convolution.padding = (1, 1)
    assert figure(logits(changed, pixels), expected) > 0.01


# --------------------------------------------------------------------------------------------------
# Knobs
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (1, {"patch_size": [8, 4, 2]}),
        (1, {"patch_size": 4}),
        (1, {"patch_size": 3}),
        (1, {"patch_size": 1}),
        (1, {"num_attention_heads": 4}),
        (1, {"attention_head_size": 4}),
        (1, {"hidden_act": "gelu"}),
        (1, {"hidden_act": "relu"}),
        (1, {"output_stride": 8}),
        (2, {"patch_size": [8, 4, 2]}),
        (2, {"patch_size": 3}),
        (2, {"patch_size": 1}),
        (2, {"attn_norm": "layer"}),
        (2, {"hidden_act": "relu"}),
        (2, {"output_stride": 8}),
    ],
)
def test_a_knob_changes_the_network_but_not_its_tensors(version, fields):
    pixels = images(2, 64, 96).double()
    plain, changed = tiny(version), tiny(version, **fields)
    changed.load_state_dict(plain.state_dict(), strict=True)
    result = logits(changed, pixels)
    assert result.shape == (2, 7) and torch.isfinite(result).all()
    assert figure(result, logits(plain, pixels)) > 1e-3


@pytest.mark.parametrize(
    ("version", "fields", "changed"),
    [
        (1, {"use_fusion": False}, lambda c: -sum(18 * w * w + 2 * w for w in c[3:])),
        (1, {"conv_kernel_size": 5}, lambda c: sum(16 * 3 * w * w for w in c[3:])),
        (1, {"conv_kernel_size": 1}, lambda c: -sum(8 * 3 * w * w for w in c[3:])),
        (1, {"qkv_bias": False}, lambda c: -3 * (2 * 16 + 4 * 24 + 3 * 32)),
        (2, {"conv_kernel_size": 5}, lambda c: sum(16 * w for w in c[3:])),
        (2, {"ffn_multiplier": 3}, lambda c: sum(2 * w * w + w for w in (32, 48, 64))),
        (2, {"n_attn_blocks": [1, 1, 2]}, lambda c: 2 * 2 * 64 + 65 * 129 + 65 * 64 + 65 * 128 + 129 * 64),
    ],
)
def test_a_knob_changes_the_number_of_parameters(version, fields, changed):
    def count(**values):
        config = tiny_config(version, **values)
        return sum(p.numel() for p in MODELS[config.model_type](config).parameters()), config.stage_channels

    before, channels = count()
    assert count(**fields)[0] - before == changed(channels)


def test_without_fusion_a_block_returns_the_projection():
    with_fusion, without = tiny(1), tiny(1, use_fusion=False)
    without.load_state_dict({k: v for k, v in with_fusion.state_dict().items() if ".fusion." not in k}, strict=True)
    block, other = (model.mobilevit.encoder.layer[2] for model in (with_fusion, without))
    features = torch.randn(1, 12, 16, 16, dtype=torch.float64)
    seen = []
    block.conv_projection.register_forward_hook(lambda _, args, output: seen.append(output))
    block(features)
    assert torch.equal(other(features), seen[0])


def test_patches_that_do_not_divide_the_map_are_resized_there_and_back():
    model = tiny(1, patch_size=3)
    block = model.mobilevit.encoder.layer[2]
    local = torch.randn(1, 16, 8, 10, dtype=torch.float64)
    larger = F.interpolate(local, size=(9, 12), mode="bilinear", align_corners=False)
    tokens = F.unfold(larger, 3, stride=3).reshape(1, 16, 9, 12).permute(0, 2, 3, 1)[0]
    tokens = block.layernorm(block.transformer(tokens)).permute(2, 0, 1)
    expected = F.fold(tokens.reshape(1, 16 * 9, 12), (9, 12), 3, stride=3)
    expected = F.interpolate(expected, size=(8, 10), mode="bilinear", align_corners=False)
    assert figure(block.global_representation(local).detach(), expected.detach()) < 1e-12


def test_token_layer_norm_normalises_each_token():
    norm = TokenLayerNorm(5, eps=1e-5).double()
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    tokens = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    mean, var = tokens.mean(1, keepdim=True), tokens.var(1, unbiased=False, keepdim=True)
    expected = (tokens - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    assert torch.allclose(norm(tokens), expected)


def test_separable_attention_is_the_papers_formula():
    attention = tiny(2).mobilevitv2.encoder.layer[2].transformer.layer[0].attention
    tokens = torch.randn(2, 32, 4, 6, dtype=torch.float64)
    weight, bias = attention.qkv_proj.convolution.weight[:, :, 0, 0], attention.qkv_proj.convolution.bias
    projected = torch.einsum("oc,bcpn->bopn", weight, tokens) + bias[:, None, None]
    scores = projected[:, 0].exp() / projected[:, 0].exp().sum(dim=-1, keepdim=True)
    context = torch.einsum("bpn,bcpn->bcp", scores, projected[:, 1:33])
    gated = projected[:, 33:].clamp(min=0) * context[..., None]
    out = attention.out_proj.convolution
    expected = torch.einsum("oc,bcpn->bopn", out.weight[:, :, 0, 0], gated) + out.bias[:, None, None]
    assert figure(attention(tokens).detach(), expected.detach()) < 1e-12


def test_a_map_smaller_than_a_patch_needs_apples_rule():
    pixels = images(1, 32, 32).double()
    assert logits(tiny(2, patch_size=4), pixels).shape == (1, 7)
    with pytest.raises(InputError, match="smaller than one patch of 4"):
        logits(tiny(2, patch_size=4, odd_map="stock"), pixels)


@VERSIONS
def test_dropout_acts_in_training_only(version):
    rates = {"hidden_dropout_prob": 0.5, "ffn_dropout": 0.5}
    rates |= (
        {"attention_probs_dropout_prob": 0.5, "classifier_dropout_prob": 0.5} if version == 1 else {"attn_dropout": 0.5}
    )
    pixels = images(2, 64, 64).double()
    for name in rates:
        zero = {other: 0.0 for other in rates if other != name}
        model = tiny(version, **zero, **{name: 0.5})
        assert torch.equal(logits(model, pixels), logits(model, pixels))
        for module in model.modules():
            module.training = isinstance(module, nn.Dropout) or "Attention" in type(module).__name__
        assert not torch.equal(logits(model, pixels), logits(model, pixels)), name
