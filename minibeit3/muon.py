"""Muon: AdamW, but a matrix takes the orthogonal part of its momentum as its step (Jordan, 2024).

torch.optim.Muon multiplies in bfloat16, which costs a CPU without AMX tiles many times a training
step; this one keeps float32 there, and steps the vectors too, so that a run has one optimiser.
Departure: the paper trains by AdamW.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minibeit3.optimiser import parameter_groups

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the published quintic iteration
ITERATIONS = 5
EPS = 1e-7
MOMENTUM = 0.95
RATE = 10.0  # of a matrix, over the rate of AdamW's parameters


def orthogonalise(matrix: Tensor) -> Tensor:
    """Nearly U V^T of matrix = U S V^T, (m, n) to (m, n): singular values end near 0.7 to 1.2.

    Newton-Schulz iterations, products of matrices alone. The formula: `exact_orthogonal`.
    """
    a, b, c = COEFFICIENTS
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x if x.device.type == "cpu" else x.bfloat16()
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)


def exact_orthogonal(matrix: Tensor) -> Tensor:
    """U V^T by singular value decomposition: what `orthogonalise` comes near, much faster."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def muon_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """`parameter_groups`, split by `with_muon`."""
    return with_muon(parameter_groups(model, weight_decay, layer_decay), model)


def with_muon(groups: Sequence[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The groups, those of the blocks' matrices apart: "muon" True, `RATE` times "scale".

    Embeddings, heads, norms and biases stay with AdamW.
    """
    inside = {id(p) for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2}
    split = []
    for group in groups:
        for muon, factor in ((True, RATE), (False, 1.0)):
            chosen = [p for p in group["params"] if (id(p) in inside) == muon]
            if chosen:
                changed = {"params": chosen, "muon": muon, "scale": factor * group["scale"]}
                split.append(group | changed)
    return split


class Muon(torch.optim.AdamW):
    """Steps groups with "muon" True by Muon, the others as AdamW does.

    A matrix W (m, n) with momentum M, decayed by 1 - lr * weight_decay, moves by
    -lr * sqrt(max(1, m / n)) * orthogonalise(Nesterov of M).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """One update from the gradients; a closure is refused."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients first")
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for p in group["params"] if group["muon"] else ():
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:  # named as AdamW's, which looks at them when a state is loaded
                    state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p))
                state["step"] += 1
                buffer = state["exp_avg"]
                buffer.lerp_(p.grad, 1 - MOMENTUM)
                stretch = max(1.0, len(p) / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = orthogonalise(p.grad.lerp(buffer, MOMENTUM))
                p.add_(update, alpha=-group["lr"] * stretch)
