"""AdamW: each weight's step is its gradient's running mean over the root of its running square.

Source: Kingma and Ba 2015 (arXiv:1412.6980); Loshchilov and Hutter 2019 (arXiv:1711.05101).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from gpt.optim.group import State, local_part

EPSILON = 1e-10  # far below the gradients of rare tokens, which it would otherwise slow down


@dataclass(frozen=True)
class AdamW:
    """The rule for weights of any shape, in one fused kernel where the device has it.

    The learning rate is about how far each number of a weight moves in a step.
    """

    beta1: float
    beta2: float

    remembers: ClassVar = frozenset({"step", "exp_avg", "exp_avg_sq"})

    def update(self, weights: list[Tensor], state: State, lr: float, weight_decay: float) -> None:
        """One step for weights that have gradients."""
        fused = weights[0].device.type in ("cpu", "cuda")
        for weight in weights:
            if "step" not in state[weight]:  # not fused, it is read by Python at every step
                state[weight]["step"] = torch.zeros((), device=weight.device if fused else "cpu")
        adamw([local_part(w) for w in weights],
              [local_part(w.grad) for w in weights if w.grad is not None],
              [local_part(state.zeros_like(w, "exp_avg")) for w in weights],
              [local_part(state.zeros_like(w, "exp_avg_sq")) for w in weights], [],
              [state[w]["step"] for w in weights], fused=fused,
              amsgrad=False, beta1=self.beta1, beta2=self.beta2, lr=lr, weight_decay=weight_decay,
              eps=EPSILON, maximize=False)
