"""Muon for the matrices inside a network, AdamW for all else, as one optimizer."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MARK = "matrices"  # of the groups of parameters that Muon takes
MOMENTUM = 0.95
# of an odd polynomial that brings singular values of up to 1 near 1 in few steps (Jordan et al. 2024)
QUINTIC, STEPS = (3.4445, -4.775, 2.0315), 5
RMS = 0.2  # root mean square of a step of AdamW, about (Liu et al. 2025)


def hidden_matrices(network: nn.Module) -> set[Tensor]:
    """The weights (out, in) of all linear layers but the last, which decides between classes."""
    return {module.weight for module in [m for m in network.modules() if isinstance(m, nn.Linear)][:-1]}


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix (m, n) whose singular values are all alike, these about 1: between 0.7 and 1.2.

    Those that were far below a hundredth of the largest stay smaller. In float32, since processors without
    bfloat16 take ten times as long to pretend to have it.
    """
    wide = matrix.float() if len(matrix) <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if wide.shape == matrix.shape else wide.T


class _Matrices(torch.optim.Optimizer):
    """Steps along orthogonalised Nesterov momentum, as large as AdamW's."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(orthogonalised(ahead), alpha=group["lr"] * RMS * math.sqrt(max(weight.shape)))


class Muon(torch.optim.Optimizer):
    """Descends by Muon where a group of parameters says `matrices`, by AdamW in the other groups.

    One rate serves both, since steps of matrices have the size of AdamW's; weight decay is decoupled from gradients.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    scalable for LLM training", section 2.2.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, MARK: False})
        matrices = [group for group in self.param_groups if group[MARK]]
        rest = [group for group in self.param_groups if not group[MARK]]
        self.parts: list[torch.optim.Optimizer] = [_Matrices(matrices, lr, weight_decay)] if matrices else []
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay))
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()
