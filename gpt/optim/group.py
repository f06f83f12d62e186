"""Which weights learn how: groups of them, each with its rule, and what the rules remember.

Not torch.optim.Optimizer: creating one imports torch's compiler, one and a half seconds that a run
of ten can do without.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from gpt.model import GPT


class State(defaultdict[Tensor, dict[str, Tensor]]):
    """What rules remember of each weight, by name."""

    def __init__(self) -> None:
        super().__init__(dict)

    def zeros_like(self, weight: Tensor, name: str) -> Tensor:
        """A memory in the weight's shape, zero at first."""
        kept = self[weight]
        if name not in kept:
            kept[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return kept[name]


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that is spread over many, as a plain tensor; else all.

    torch.distributed has such tensors; importing it takes a while, and only they need it.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Rule(Protocol):
    """How weights follow their gradients. remembers: names of what it keeps of each weight."""

    remembers: ClassVar[frozenset[str]]

    def update(self, weights: list[Tensor], state: State, lr: float, weight_decay: float) -> None:
        """One step for weights that have gradients."""
        ...


@dataclass
class Group:
    """Weights that learn by the same rule, at the same rate."""

    name: str
    weights: list[nn.Parameter]
    rule: Rule
    peak_lr: float
    weight_decay: float
    lr: float = field(init=False)  # now

    def __post_init__(self) -> None:
        self.lr = self.peak_lr


def weights_by_kind(model: GPT) -> dict[str, list[nn.Parameter]]:
    """Every weight that learns, once; kinds that the model does not have are left out.

    matrices: (out, in), of the blocks. output: (V, C), where it is not the embedding. embeddings:
    tables of tokens and positions. vectors: norms and biases. adapters: where only these learn.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if model.adapter is not None:
            kind = "adapters"
        elif id(weight) in tables:
            kind = "embeddings"
        elif weight.dim() < 2:
            kind = "vectors"
        else:
            kind = "output" if name.startswith("lm_head") else "matrices"
        found.setdefault(kind, []).append(weight)
    return found
