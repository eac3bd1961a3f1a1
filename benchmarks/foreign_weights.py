"""Weights of this package under the names of the libraries that the benchmarks compare with."""

from __future__ import annotations

import re

import numpy as np

# Ordered: each takes the result of the one before.
TO_TIMM = [
    (r"^mobilevit(v2)?\.", ""),
    (r"conv_stem\.", "stem."),
    (r"encoder\.layer\.(\d)\.layer\.", r"stages.\1."),
    (r"encoder\.layer\.(\d)\.downsampling_layer\.", r"stages.\1.0."),
    (r"encoder\.layer\.(\d)\.", r"stages.\1.1."),
    (r"expand_1x1\.", "conv1_1x1."),
    (r"conv_3x3\.", "conv2_kxk."),
    (r"reduce_1x1\.", "conv3_1x1."),
    (r"transformer\.layer\.", "transformer."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"layernorm\.", "norm."),
    (r"attention\.attention\.qkv\.", "attn.qkv."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.(qkv_proj|out_proj)\.convolution\.", r"attn.\1."),
    (r"(intermediate\.dense|ffn\.conv1\.convolution)\.", "mlp.fc1."),
    (r"(output\.dense|ffn\.conv2\.convolution)\.", "mlp.fc2."),
    (r"conv_1x1\.convolution\.", "conv_1x1."),
    (r"conv_1x1_exp\.", "final_conv."),
    (r"conv_projection\.", "conv_proj."),
    (r"fusion\.", "conv_fusion."),
    (r"convolution\.", "conv."),
    (r"normalization\.", "bn."),
    (r"^classifier\.", "head.fc."),
]
LAST_BLOCK = {2: 3, 3: 5, 4: 4}  # of a MobileViT stage, as keras-cv-attention-models counts


def timm_weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of timm's network, from the checkpoint's tensors."""
    merged = {}
    for name, array in tensors.items():
        if ".attention.attention.query." in name:
            parts = [tensors[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            name, array = name.replace(".query.", ".qkv."), np.concatenate(parts)
        elif re.search(r"\.attention\.attention\.(key|value)\.", name):
            continue
        for pattern, replacement in TO_TIMM:
            name = re.sub(pattern, replacement, name)
        merged[name] = array
    return merged


def kecam_weights(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`{"layer/variable": array}` for keras-cv-attention-models on TensorFlow, in its layout."""
    state, version_2 = timm_weights(tensors), any(name.startswith("mobilevitv2.") for name in tensors)
    weights = {}
    for name, array in state.items():
        module, variable = name.rsplit(".", 1)
        if variable == "num_batches_tracked":
            continue
        layer = _kecam_layer(module, version_2)
        depthwise = array.ndim == 4 and array.shape[1] == 1 and module.endswith(("conv2_kxk.conv", "conv_kxk.conv"))
        if depthwise:
            layer = layer.removesuffix("_conv") + "_dw_conv"
        if array.ndim == 4:
            array = array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        elif array.ndim == 2:
            array = array.transpose()
        kernel = "depthwise_kernel" if depthwise else "kernel" if array.ndim > 1 else "gamma"
        names = {
            "weight": kernel,
            "bias": "beta" if layer.endswith(("_bn", "_ln", "_norm")) else "bias",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        }
        weights[f"{layer}/{names[variable]}"] = array
    return weights


def _kecam_layer(module: str, version_2: bool) -> str:
    """`stages.2.1.transformer.0.norm1` → `stack3_block2_attn_ln`."""
    top = {"stem.": "stem_", "final_conv.": "features_", "head.fc": "predictions"}
    for prefix, replacement in top.items():
        if module.startswith(prefix):
            return replacement + module.removeprefix(prefix)
    stage, block, part = re.fullmatch(r"stages\.(\d)\.(\d)\.(.+)", module).groups()  # type: ignore[union-attr]
    stack = f"stack{int(stage) + 1}_block"
    norm = "group_norm" if version_2 else "ln"
    if match := re.fullmatch(r"conv([123])_\dx\d\.(\w+)|conv2_kxk\.(\w+)", part):
        return f"{stack}{int(block) + 1}_deep_{match[1] or 2}_{match[2] or match[3]}"
    if match := re.fullmatch(r"transformer\.(\d)\.(.+)", part):
        layer = {
            "norm1": f"attn_{norm}",
            "attn.qkv": "attn_mhsa_qkv",
            "attn.qkv_proj": "attn_mhsa_qkv_conv",
            "attn.proj": "attn_mhsa_output",
            "attn.out_proj": "attn_mhsa_outputconv",
            "norm2": f"mlp_{norm}",
            "mlp.fc1": "mlp_Conv_0" if version_2 else "mlp_Dense_0",
            "mlp.fc2": "mlp_Conv_1" if version_2 else "mlp_Dense_1",
        }[match[2]]
        return f"{stack}{int(match[1]) + 2}_{layer}"
    last = f"{stack}{LAST_BLOCK[int(stage)]}"
    parts = {
        "conv_kxk.": f"{stack}2_pre_1_",
        "conv_1x1": f"{stack}2_pre_2_conv",
        "norm": f"{last}_post_{norm}",
        "conv_proj.": f"{last}_post_1_",
        "conv_fusion.": f"{last}_post_2_",
    }
    prefix = next(prefix for prefix in parts if part.startswith(prefix))
    return parts[prefix] + part.removeprefix(prefix)
