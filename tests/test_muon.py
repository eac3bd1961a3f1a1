"""Muon: orthogonal updates for matrices, AdamW for the rest."""

import copy

import pytest
import torch
from networks import MODELS
from torch import nn

from mobilevit_hub.network.configuration import MobileViTConfig, MobileViTV2Config
from mobilevit_hub.pt.training.muon import Muon, orthogonalize
from mobilevit_hub.recipes.recipe import is_hidden_matrix


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.double())


@pytest.mark.parametrize("shape", [(64, 96), (48, 144), (144, 48), (32, 288), (2, 100), (1, 7), (7, 1)])
def test_orthogonalize_brings_singular_values_near_1(shape):
    matrix = torch.randn(shape) * 37
    result = orthogonalize(matrix)
    values = singular_values(result)
    assert result.shape == shape
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    # the same singular vectors, in the same order of sign
    inner = u.T @ result.double() @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.05
    assert inner.diagonal().min() > 0.6


def test_orthogonalize_of_a_square_matrix_with_known_singular_values():
    u, v = (torch.linalg.qr(torch.randn(24, 24)).Q for _ in range(2))
    values = singular_values(orthogonalize(u @ torch.diag(torch.linspace(0.1, 1, 24)) @ v))
    assert values.min() > 0.6 and values.max() < 1.3


def test_orthogonalize_does_not_depend_on_scale_and_survives_zero():
    matrix = torch.randn(20, 30)
    assert torch.allclose(orthogonalize(matrix), orthogonalize(1e4 * matrix), atol=1e-4)
    assert torch.equal(orthogonalize(torch.zeros(4, 5)), torch.zeros(4, 5))


def matrix_names(model_type, config):
    names = {}
    for name, parameter in MODELS[model_type](config).named_parameters():
        names[name] = is_hidden_matrix(name, parameter.shape)
    return names


def test_matrices_of_version_1():
    names = matrix_names("mobilevit", MobileViTConfig.from_preset("mobilevit-xxs"))
    expected = {
        name: not name.endswith("bias")
        and not any(part in name for part in ("conv_stem", "classifier", "norm"))
        and not ("conv_3x3" in name and "downsampling" not in name and name.count("layer") > 1)
        for name in names
    }
    # of the 3 × 3 convolutions only those of the residual blocks are depthwise
    network = MODELS["mobilevit"](MobileViTConfig.from_preset("mobilevit-xxs"))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            expected[f"{name}.weight"] = module.groups == 1 and "conv_stem" not in name
    assert names == expected
    assert sum(names.values()) > 50


def test_matrices_of_version_2():
    config = MobileViTV2Config.from_preset("mobilevitv2-0.5")
    names, network = matrix_names("mobilevitv2", config), MODELS["mobilevitv2"](config)
    modules = dict(network.named_modules())
    for name, chosen in names.items():
        module, kind = modules[name.rpartition(".")[0]], name.rpartition(".")[2]
        convolution = isinstance(module, nn.Conv2d) and module.groups == 1 and "conv_stem" not in name
        assert chosen == (kind == "weight" and convolution), name
    assert sum(names.values()) > 50


def parameters():
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape)) for shape in ((8, 12), (6, 4, 3, 3), (9,), (5, 7))]


def groups(tensors):
    return [
        {"params": tensors[:2], "muon": True, "lr": 0.02, "weight_decay": 0.1},
        {"params": tensors[2:], "muon": False, "lr": 0.003, "weight_decay": 0.05},
    ]


def train(optimizer, tensors, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(100 + step)
        for tensor in tensors:
            tensor.grad = torch.randn_like(tensor)
        optimizer.step()


def test_other_groups_equal_adamw_exactly():
    tensors, others = parameters(), parameters()[2:]
    muon = Muon(groups(tensors))
    adamw = torch.optim.AdamW(others, lr=0.003, weight_decay=0.05)
    for step in range(8):
        torch.manual_seed(step)
        for tensor in tensors:
            tensor.grad = torch.randn_like(tensor)
        for mine, other in zip(tensors[2:], others, strict=True):
            other.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    assert all(torch.equal(mine, other) for mine, other in zip(tensors[2:], others, strict=True))


def test_muon_step_is_nesterov_momentum_made_orthogonal():
    matrix = nn.Parameter(torch.randn(12, 4))
    optimizer = Muon([{"params": [matrix], "muon": True, "lr": 0.1, "weight_decay": 0.5}], momentum=0.9)
    before, gradients = matrix.detach().clone(), torch.randn(2, 12, 4)
    for gradient in gradients:
        matrix.grad = gradient.clone()
        optimizer.step()
    momentum = torch.zeros(12, 4)
    for gradient in gradients:
        momentum = 0.9 * momentum + gradient
        update = orthogonalize(gradient + 0.9 * momentum) * 3**0.5  # √(rows / columns)
        before = before * (1 - 0.1 * 0.5) - 0.1 * update
    assert torch.allclose(matrix, before, atol=1e-6)


def test_convolution_is_updated_as_the_matrix_of_its_filters():
    convolution = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(convolution.detach().reshape(6, 36).clone())
    gradient = torch.randn(6, 36)
    for tensor in (convolution, matrix):
        tensor.grad = gradient.reshape(tensor.shape).clone()
        Muon([{"params": [tensor], "muon": True, "lr": 0.1, "weight_decay": 0.0}]).step()
    assert torch.allclose(convolution.reshape(6, 36), matrix, atol=1e-6)


def test_parameters_without_gradient_stay():
    tensors = parameters()
    before = copy.deepcopy(tensors)
    Muon(groups(tensors)).step()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_state_round_trip_continues_identically(tmp_path):
    straight = parameters()
    train(Muon(groups(straight)), straight, 6)

    resumed = parameters()
    first = Muon(groups(resumed))
    train(first, resumed, 3)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = Muon(groups(resumed))
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(second, resumed, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))

    forgetful = parameters()
    train(Muon(groups(forgetful)), forgetful, 3)
    train(Muon(groups(forgetful)), forgetful, 3, start=3)
    assert not torch.equal(straight[0], forgetful[0])
