"""Muon: momentum whose update is turned into the nearest orthogonal matrix.

A gradient of low rank moves a few directions far and the others hardly at all; with all its
singular values made alike, every direction learns at the same pace. Matrices of the same shape go
through the iteration together, so that many small products become a few large ones.
Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gpt.optim.group import State, local_part

# One iteration each: a, b, c of x ↦ a x + b x³ + c x⁵ on the singular values. Steep at zero: what
# is above 0.015 of the norm lands between 0.38 and 1.25, which two more iterations would narrow
# and the loss does not notice (benchmarks/recipe.md).
# Source: Cesista et al. 2025, "Squeezing 1-2% Efficiency Gains Out of Muon", the first three.
NEWTON_SCHULZ = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037))


@dataclass(frozen=True)
class Muon:
    """The rule for matrices between hidden layers.

    The learning rate is the spectral norm of one update of a square or wide matrix, so that a value
    that suits one width suits all; tall ones move √(rows / columns) times as far.
    momentum: the share of the old direction that is kept.
    """

    momentum: float

    remembers: ClassVar = frozenset({"momentum"})

    def update(self, matrices: list[Tensor], state: State, lr: float, weight_decay: float) -> None:
        """One step for matrices that have gradients."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        for alike in shapes.values():
            updates = orthogonalised(torch.stack(self.look_ahead(alike, state)))  # (N, out, in)
            self.move(alike, updates, lr, weight_decay)

    def look_ahead(self, matrices: list[Tensor], state: State) -> list[Tensor]:
        """Follow the gradients with the momentum; where it leads next, Nesterov's look ahead."""
        gradients = [local_part(m.grad) for m in matrices if m.grad is not None]
        averages = [local_part(state.zeros_like(m, "momentum")) for m in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
        return list(torch._foreach_lerp(gradients, averages, self.momentum))

    def move(self, matrices: list[Tensor], updates: Tensor, lr: float, weight_decay: float) -> None:
        """Let matrices of one shape decay, and update them.  updates: (N, out, in)"""
        rows, columns = matrices[0].shape
        weights = [local_part(m) for m in matrices]
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        torch._foreach_add_(weights, list(updates.to(weights[0].dtype)),
                            alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonalised(stack: Tensor) -> Tensor:
    """Each matrix with all its singular values brought near 1.  (N, out, in) -> the same

    The iteration squares the shorter side; on GPUs in bfloat16, which is precise enough for it.
    """
    x = stack.to(number_format(stack))
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT.contiguous() if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def number_format(matrix: Tensor) -> torch.dtype:
    """What a matrix is orthogonalised in, where it lies."""
    return torch.bfloat16 if matrix.is_cuda else torch.float32
