"""Whole networks against Apple's outputs, stock transformers and timm, each with twins that must fail."""

import hashlib

import numpy as np
import pytest
import reference
import torch
import transformers
from networks import MODELS, STOCK_MODELS, awake, images, import_timm, logits, tiny_config, to_torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.pt.layers import ConvNormAct
from mobilevit_hub.pt.mobilevit import MobileViTBlock
from mobilevit_hub.pt.mobilevitv2 import MobileViTV2Block, TransformerLayer

# Parameters, tensors in the state dict, multiply-adds of one 256×256 image (convolutions, linear layers
# and attention products).
COUNTS = {
    "mobilevit_xxs": (1_272_024, 347, 407_364_096),
    "mobilevit_xs": (2_317_848, 347, 1_025_911_808),
    "mobilevit_s": (5_578_632, 347, 2_000_831_488),
    "mobilevitv2_050": (1_370_593, 269, 464_594_944),
    "mobilevitv2_075": (2_866_009, 269, 1_027_980_288),
    "mobilevitv2_100": (4_901_841, 269, 1_812_090_880),
    "mobilevitv2_125": (7_478_089, 269, 2_816_926_720),
    "mobilevitv2_150": (10_594_753, 269, 4_042_487_808),
    "mobilevitv2_175": (14_251_833, 269, 5_488_774_144),
    "mobilevitv2_200": (18_449_329, 269, 7_155_785_728),
}


def empty(variant, **fields):
    """A network without storage: its structure only."""
    config = config_from_dict(reference.config(variant) | fields)
    with torch.device("meta"):
        return MODELS[config.model_type](config)


def build(variant, **fields):
    """A network with the weights of the rule, in evaluation mode."""
    model = empty(variant, **fields)
    model.load_state_dict(to_torch(reference.state_dict(variant)), strict=True, assign=True)
    return model.eval()


def build_stock(variant, **fields):
    config = reference.config(variant) | fields
    classes = STOCK_MODELS[config.pop("model_type")]
    model = classes[1](classes[0](**config))
    model.load_state_dict(to_torch(reference.state_dict(variant)), strict=True)
    return model.eval()


def build_timm(variant, **options):
    model = import_timm().create_model(variant, **options)
    weights = to_torch(reference.state_dict(variant, "timm"))
    if options.get("features_only"):
        # features_only flattens "stages.0" to "stages_0" and drops what follows the last stage.
        weights = {name.replace("stages.", "stages_"): value for name, value in weights.items()}
        weights = {name: value for name, value in weights.items() if not name.startswith(("head.", "final_conv."))}
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def features(model, pixels):
    """Everything that a features case holds."""
    base = model.base_model
    output = base(pixels, output_hidden_states=True)
    stages = {f"layer_{i}": stage for i, stage in enumerate(output.hidden_states, 1)}
    return {"conv_1": base.conv_stem(pixels), **stages, "features": output.last_hidden_state}


@pytest.fixture(scope="module", params=reference.VARIANTS)
def network(request):
    return request.param, build(request.param)


# --------------------------------------------------------------------------------------------------
# Apple's outputs
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_the_rule_makes_the_same_bits_as_when_the_outputs_were_computed(variant):
    for scheme, expected in reference.manifest()[variant]["sha256"].items():
        assert reference.sha256(reference.state_dict(variant, scheme)) == expected, scheme
    for case_id, entry in reference.manifest()[variant]["cases"].items():
        pixels = reference.load_case(variant, case_id).input().astype("<f4")
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["input_sha256"], case_id


@pytest.mark.parametrize("variant", COUNTS)
def test_parameters_tensors_and_multiply_adds(variant):
    parameters, tensors, macs = COUNTS[variant]
    model = empty(variant).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    model.set_attn_implementation("eager")  # the counter has no rule for the fused attention
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 256, 256, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=1e-3)


def test_every_logit_equals_apples(network):
    variant, model = network
    cases = reference.case_ids("logits", (variant,))
    assert len(cases) == 4
    for case in (reference.load_case(*ids) for ids in cases):
        case.check({"logits": logits(model, torch.from_numpy(case.input()))})


def test_every_feature_equals_apples(network):
    variant, model = network
    case = reference.load_case(variant, "features_256x256")
    assert len(case.specs) == 14
    case.check(features(model, torch.from_numpy(case.input())))


def training_step(variant, case, dtype):
    """Loss, logits, gradients and BatchNorm statistics of one forward and backward pass, by Apple's names."""
    no_dropout = {"hidden_dropout_prob": 0.0, "classifier_dropout_prob": 0.0}
    model = build(variant, **no_dropout).to(dtype).train()
    output = model(torch.from_numpy(case.input()).to(dtype), labels=torch.tensor(case.labels))
    output.loss.backward()
    gradients, buffers = ({n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers()))
    by_apples_name = {"grads": {}, "buffers": {}}
    for name, _ in reference.manifest()[variant]["tensors"]:
        names = reference.new_names(variant, name, "transformers")
        kind, values = ("buffers", buffers) if names[0] in buffers else ("grads", gradients)
        parts = [values[n] for n in names]
        by_apples_name[kind][name] = (torch.cat(parts) if len(parts) > 1 else parts[0]).numpy()
    counters = [value for name, value in buffers.items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {101}
    return {"loss": output.loss.detach().reshape(1), "logits": output.logits.detach(), **by_apples_name}


@pytest.mark.parametrize(("variant", "case_id"), reference.case_ids("train"))
def test_a_training_step_equals_apples(variant, case_id):
    """In float64, so that only a wrong formula can show; the kit's tolerances are for float32."""
    case = reference.load_case(variant, case_id)
    assert len(case.specs) == 12
    rows = case.compare(training_step(variant, case, torch.float64))
    assert max(value for value, _ in rows.values()) < 1e-5, rows


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
def test_a_training_step_in_float32_is_within_the_tolerances(variant):
    case = reference.load_case(variant, "train_192x128")
    case.check(training_step(variant, case, torch.float32))


@pytest.mark.parametrize(
    ("variant", "case_id"), [("mobilevit_s", "logits_192x192"), ("mobilevit_xxs", "train_128x128")]
)
def test_where_apples_layer_norm_takes_tokens_for_channels_the_plain_form_is_compared(variant, case_id):
    """The stored arrays of both forms differ by far, so equality with one decides."""
    plain, ambiguous = (reference.load_case(variant, case_id, i) for i in ("cvnets_channel_last", "cvnets"))
    assert reference.load_case(variant, case_id).source == "cvnets_channel_last"
    assert reference.figure(plain.arrays()["logits"], ambiguous.arrays()["logits"]) > 0.1


# --------------------------------------------------------------------------------------------------
# Negative twins: the comparisons see each of these
# --------------------------------------------------------------------------------------------------


def _blocks(model, kind=(MobileViTBlock, MobileViTV2Block)):
    return [module for module in model.modules() if isinstance(module, kind)]


def _set_eps(kind, eps):
    def change(model):
        for module in model.modules():
            if isinstance(module, kind):
                module.eps = eps

    return change


def _swap_concat_order(model):
    for block in _blocks(model):
        weight = block.fusion.convolution.weight
        weight.data = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)


def _pad_like_tensorflow(model):
    """Padding 0 before and 1 after, where stride 2 has 1 and 1."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, args: (F.pad(args[0], (0, 1, 0, 1)),))


def _projection_activation(activation):
    def change(model):
        for block in _blocks(model):
            block.conv_projection.activation = activation

    return change


def _swap(first, second):
    def change(model):
        state = model.state_dict()
        for name in [n for n in state if f".{first}." in n]:
            other = name.replace(f".{first}.", f".{second}.")
            one, two = state[name].clone(), state[other].clone()
            state[name].copy_(two), state[other].copy_(one)

    return change


def _gelu_feed_forward(model):
    for module in model.modules():
        if type(module).__name__ == "TransformerLayer":
            module.activation = nn.GELU()


def _swap_key_and_value(model):
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            conv = module.attention.qkv_proj.convolution
            for tensor in (conv.weight, conv.bias):
                query, key, value = tensor.data.split([1, module.attention.width, module.attention.width])
                tensor.data = torch.cat([query, value, key])


def _layer_norm_for_group_norm(model):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.GroupNorm(2, child.num_channels, eps=child.eps))
                getattr(module, name).load_state_dict(child.state_dict())


def _flip_channels(model):
    stem = model.base_model.conv_stem.convolution
    stem.weight.data = stem.weight.data.flip(1)


def _hard_swish(model):
    for module in model.modules():
        if isinstance(module, ConvNormAct) and module.activation is not None:
            module.activation = nn.Hardswish()


V1_TWINS = {
    "concat order": _swap_concat_order,
    "channels": _flip_channels,
    "padding": _pad_like_tensorflow,
    "LayerNorm eps": _set_eps(nn.LayerNorm, 1e-3),
    "BatchNorm eps": _set_eps(nn.BatchNorm2d, 1e-3),
    "projection activation": _projection_activation(None),
    "query and key": _swap("query", "key"),
    "key and value": _swap("key", "value"),
    "GELU": _gelu_feed_forward,
    "hard swish": _hard_swish,
}
V2_TWINS = {
    "channels": _flip_channels,
    "padding": _pad_like_tensorflow,
    "GroupNorm eps": _set_eps(nn.GroupNorm, 1e-3),
    "BatchNorm eps": _set_eps(nn.BatchNorm2d, 1e-3),
    "projection activation": _projection_activation(nn.SiLU()),
    "key and value": _swap_key_and_value,
    "two groups": _layer_norm_for_group_norm,
    "hard swish": _hard_swish,
}
TWINS = [("mobilevit_xxs", n, t) for n, t in V1_TWINS.items()] + [
    ("mobilevitv2_050", n, t) for n, t in V2_TWINS.items()
]


@pytest.mark.parametrize(
    ("variant", "name", "change"), TWINS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_changed_network_is_far_from_apples(variant, name, change):
    case = reference.load_case(variant, "logits_256x256")
    model = build(variant)
    change(model)
    value, tolerance = case.compare({"logits": logits(model, torch.from_numpy(case.input()))})["logits"]
    assert value > 100 * tolerance


@pytest.mark.parametrize(("variant", "fields"), [
    ("mobilevitv2_050", {"attn_norm": "layer"}),
    ("mobilevitv2_050", {"patch_size": 4}),
    ("mobilevit_xxs", {"patch_size": 4}),
    ("mobilevit_xxs", {"num_attention_heads": 2}),
    ("mobilevit_xxs", {"output_stride": 16}),
])  # fmt: skip
def test_another_config_is_far_from_apples(variant, fields):
    case = reference.load_case(variant, "logits_256x256")
    value, tolerance = case.compare({"logits": logits(build(variant, **fields), torch.from_numpy(case.input()))})[
        "logits"
    ]
    assert value > 100 * tolerance


@pytest.mark.parametrize("variant", ["mobilevit_xxs", "mobilevitv2_050"])
def test_the_other_corner_rule_is_far_from_apples_on_odd_maps(variant, monkeypatch):
    """Version 1 resizes with half-pixel centres and back, version 2 with aligned corners."""
    case = reference.load_case(variant, "logits_224x300")
    model, pixels, resize = build(variant), torch.from_numpy(case.input()), F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **kw: resize(x, **kw | {"align_corners": not kw["align_corners"]}))
    value, tolerance = case.compare({"logits": logits(model, pixels)})["logits"]
    assert value > 100 * tolerance


# --------------------------------------------------------------------------------------------------
# Stock transformers and timm with the same weights
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [("mobilevit_xxs", 256, 256), ("mobilevit_xxs", 250, 231), ("mobilevit_xs", 224, 160), ("mobilevit_s", 96, 128),
     ("mobilevitv2_050", 256, 192), ("mobilevitv2_100", 128, 128)],
)  # fmt: skip
def test_stock_transformers_agrees(variant, height, width):
    """Version 1 at all sizes, version 2 where all maps are even."""
    pixels = images(1, height, width)
    ours, stock = build(variant), build_stock(variant)
    assert reference.figure(logits(ours, pixels), logits(stock, pixels)) < 1e-4
    with torch.no_grad():
        hidden = [m(pixels, output_hidden_states=True).hidden_states for m in (ours, stock)]
    for own, other in zip(*hidden, strict=True):
        assert reference.figure(own, other) < 2e-4


def test_odd_maps_by_stock_transformers_rule():
    for height, width in ((224, 224), (250, 231)):
        pixels = images(1, height, width)
        stock = logits(build_stock("mobilevitv2_050"), pixels)
        assert reference.figure(logits(build("mobilevitv2_050", odd_map="stock"), pixels), stock) < 1e-4
        assert reference.figure(logits(build("mobilevitv2_050"), pixels), stock) > 0.1


@pytest.mark.parametrize("variant", ["mobilevitv2_050", "mobilevitv2_100"])
def test_odd_maps_by_stock_transformers_rule_equal_its_stored_outputs(variant):
    model = build(variant, odd_map="stock")
    stored = [c for ids in reference.case_ids("logits", (variant,)) if (c := reference.load_case(*ids, "transformers"))]
    assert sum(case.source == "transformers" for case in stored) == 2  # the others are the same as Apple's
    for case in stored:
        case.check({"logits": logits(model, torch.from_numpy(case.input()))})


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [("mobilevit_xxs", 256, 256), ("mobilevit_xxs", 250, 231), ("mobilevitv2_050", 256, 256),
     ("mobilevitv2_050", 224, 224), ("mobilevitv2_050", 250, 231)],
)  # fmt: skip
def test_timm_agrees(variant, height, width):
    """timm's version 1 weights want R, G, B; ours keep Apple's B, G, R."""
    model = build_timm(variant)
    pixels = images(2, height, width)
    with torch.no_grad():
        theirs = model(pixels.flip(1) if variant == "mobilevit_xxs" else pixels)
        wrong_order = model(pixels if variant == "mobilevit_xxs" else pixels.flip(1))
    ours = logits(build(variant), pixels)
    assert reference.figure(ours, theirs) < 1e-4
    assert reference.figure(ours, wrong_order) > 0.1


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_version_2_equals_timm(output_stride):
    pixels = images(1, 160, 128)
    theirs = build_timm("mobilevitv2_050", features_only=True, output_stride=output_stride)
    with torch.no_grad():
        expected = theirs(pixels)
        ours = build("mobilevitv2_050", output_stride=output_stride)(pixels, output_hidden_states=True).hidden_states
    assert len(expected) == len(ours) == 5
    for own, other in zip(ours, expected, strict=True):
        assert reference.figure(own, other) < 2e-4


def tiny_pair(version, **fields):
    """Our tiny network and stock's with the same random weights, in float64."""
    config = tiny_config(version, **fields)
    ours = awake(MODELS[config.model_type](config)).double().eval()
    classes = STOCK_MODELS[config.model_type]
    stock = classes[1](classes[0].from_dict(config.to_dict())).double().eval()
    stock.load_state_dict(ours.state_dict(), strict=True)
    return ours, stock


def test_the_tiny_networks_have_their_known_counts():
    for version, parameters, tensors in ((1, 97_511, 347), (2, 172_330, 197)):
        model = MODELS[tiny_config(version).model_type](tiny_config(version))
        assert sum(p.numel() for p in model.parameters()) == parameters and len(model.state_dict()) == tensors


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (72, 96), (101, 77)])
def test_dilated_version_1_equals_stock(output_stride, size):
    ours, stock = tiny_pair(1, output_stride=output_stride)
    pixels = images(2, *size).double()
    with torch.no_grad():
        one, two = (model(pixels, output_hidden_states=True) for model in (ours, stock))
    for own, other in zip((*one.hidden_states, one.logits), (*two.hidden_states, two.logits), strict=True):
        assert reference.figure(own, other) < 1e-10


@pytest.mark.parametrize(("output_stride", "dilations"), [(8, {3: 2, 4: 4}), (16, {4: 2})])
def test_dilated_version_2_equals_stock_once_its_local_convolution_is_dilated(output_stride, dilations):
    ours, stock = tiny_pair(2, output_stride=output_stride)
    pixels = images(2, 64, 96).double()
    assert reference.figure(logits(ours, pixels), logits(stock, pixels)) > 0.01  # as stock is, without that dilation
    for stage, dilation in dilations.items():
        convolution = stock.mobilevitv2.encoder.layer[stage].conv_kxk.convolution
        convolution.dilation = convolution.padding = (dilation, dilation)
    assert reference.figure(logits(ours, pixels), logits(stock, pixels)) < 1e-10


@pytest.mark.parametrize("version", [1, 2])
def test_stock_transformers_opens_our_folder_and_we_open_its_folder(version, tmp_path):
    config = tiny_config(version)
    ours = awake(MODELS[config.model_type](config)).eval()
    pixels = images(2, 64, 128)
    ours.save_pretrained(tmp_path / "ours")
    stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert type(stock) is STOCK_MODELS[config.model_type][1]
    assert reference.figure(logits(ours, pixels), logits(stock, pixels)) < 1e-5
    stock.save_pretrained(tmp_path / "stock")
    again = type(ours).from_pretrained(tmp_path / "stock")
    assert torch.equal(logits(again, pixels), logits(ours, pixels))
    assert all(
        np.array_equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True)
    )
