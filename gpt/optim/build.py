"""From a configuration to the optimizer of a model: which one, and at what rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt.configuration import ModelConfig, OptimConfig
from gpt.model import GPT
from gpt.optim.adamw import AdamW
from gpt.optim.average import OTHER
from gpt.optim.group import Group, State, local_part, weights_by_kind
from gpt.optim.muon import Muon

# An iteration of Muon's costs n_embd / tokens of a step, at most: three of them half a step here.
MUON_TOKENS_PER_WIDTH = 6
BETA2_RANGE = (0.9, 0.999)


@dataclass(frozen=True)
class Rates:
    """What "auto" and half-lives became for a model and the size of its steps.

    ema_decay: the share of the old average that a step keeps; None: weights are not averaged.
    """

    name: str
    lr: float
    muon_lr: float
    beta2: float
    ema_decay: float | None

    @classmethod
    def of(cls, optim: OptimConfig, model: ModelConfig, tokens_per_step: float) -> Rates:
        """From the configuration; tokens_per_step: on average."""
        def kept(half_life: int) -> float:
            return 0.5 ** (tokens_per_step / half_life)

        low, high = BETA2_RANGE
        muon_pays = tokens_per_step >= MUON_TOKENS_PER_WIDTH * model.n_embd
        name = ("muon" if muon_pays else "adamw") if optim.name == "auto" else optim.name
        return cls(
            name,
            adamw_lr(model.n_embd, beside_muon=name == "muon") if optim.lr == "auto" else optim.lr,
            optim.muon_lr,
            min(high, max(low, kept(optim.beta2_half_life))) if optim.beta2 == "auto"
            else optim.beta2,
            None if optim.ema_half_life is None else kept(optim.ema_half_life))

    def __str__(self) -> str:
        muon = f"muon at {self.muon_lr:.3g} for matrices, " if self.name == "muon" else ""
        return f"{muon}adamw at {self.lr:.3g}, beta2 {self.beta2:.4g}"


def adamw_lr(n_embd: int, beside_muon: bool) -> float:
    """The peak learning rate that suits a width: benchmarks/recipe.md.

    For all weights it falls with the width, as the sums that matrices make grow with it; for
    embeddings, output layer and vectors alone it may be five times as high, and falls slower.
    """
    return 0.02 * (128 / n_embd) ** 0.5 if beside_muon else min(4e-3, 1 / n_embd)


class Optimizer:
    """Groups of weights that step together, and one state for all, by weight."""

    def __init__(self, groups: list[Group]):
        self.groups, self.state = groups, State()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The weights, as torch's gradient scaler looks for them."""
        return [{"params": [_local(weight) for weight in group.weights]} for group in self.groups]

    def set_lr(self, factor: float) -> dict[str, float]:
        """Give every group this share of its peak learning rate; returns the rates by group."""
        for group in self.groups:
            group.lr = group.peak_lr * factor
        return {group.name: group.lr for group in self.groups}

    def lacking_state(self) -> set[str]:
        """What rules should remember of a weight of which something is remembered, and do not.

        An average alone is nothing: in float16 the first updates may all have been left out.
        """
        return {name for group in self.groups for weight in group.weights
                if weight in self.state and self.state[weight].keys() - {OTHER}
                for name in group.rule.remembers - self.state[weight].keys()}

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        for group in self.groups:
            weights: list[Tensor] = [w for w in group.weights if w.grad is not None]
            if weights:
                group.rule.update(weights, self.state, group.lr, group.weight_decay)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None


def _local(weight: Tensor) -> Tensor:
    """A weight that has this process's part of the gradient as its own."""
    local = local_part(weight.detach())
    if weight.grad is not None:
        local.grad = local_part(weight.grad.detach())
    return local


def build_optimizer(model: GPT, optim: OptimConfig, rates: Rates) -> Optimizer:
    """AdamW for every weight, or for all but the matrices, which are Muon's.

    Matrices and the output layer decay; norms, biases, embeddings and adapters never do.
    """
    assert rates.name in ("adamw", "muon"), f"nobody builds {rates.name}"
    adamw = AdamW(optim.beta1, rates.beta2)
    groups = []
    for kind, weights in weights_by_kind(model).items():
        decay = optim.weight_decay if kind in ("matrices", "output") else 0.0
        if kind == "matrices" and rates.name == "muon":
            groups.append(Group(kind, weights, Muon(optim.muon_momentum), rates.muon_lr, decay))
        else:
            groups.append(Group(kind, weights, adamw, rates.lr, decay))
    return Optimizer(groups)
