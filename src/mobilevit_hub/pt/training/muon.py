"""Muon: momentum whose matrices are made orthogonal, with AdamW for everything that is not a matrix.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). It learns more
from each photo than AdamW alone, which is what counts in a run of a few epochs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Quintic iteration of the source: it takes the singular values of a matrix to about 1 in five steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix with all singular values near 1: `U V` for `U S V`."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if wide else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if wide else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with `muon=True`, AdamW for the others.

    Args:
        groups: Parameter groups with `params`, `lr`, `weight_decay` and `muon`.
        momentum: Share of the old momentum that is kept (Nesterov).
        betas: Of AdamW.
        eps: Of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    self._muon_step(parameter, group)
            else:
                self._adamw_step([p for p in group["params"] if p.grad is not None], group)

    def _muon_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            return
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(state["momentum"], alpha=group["momentum"]).flatten(1)
        update = orthogonalize(update) * max(1, update.shape[0] / update.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"])

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(0.0, device=parameter.device),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [s["mean"] for s in states],
            [s["square"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=True,
        )
