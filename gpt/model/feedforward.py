"""The feed-forward layer: each position on its own, through a wider space and back."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import GATED, ModelConfig

_gelu_tanh = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu, "geglu": _gelu_tanh, "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "relu": F.relu,
    "relu2": lambda h: F.relu(h).square()}


class FeedForward(nn.Module):
    """Up, a non-linearity, down.

    swiglu and geglu gate one half of a twice as wide projection with the other (arXiv:2002.05202),
    geglu by gelu_tanh; gelu is exact, gelu_tanh GPT-2's approximation (arXiv:1606.08415); relu2 is
    ReLU squared (arXiv:2109.08668).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.mlp = config.mlp
        up_width = 2 * config.n_inner if config.mlp in GATED else config.n_inner
        self.up_proj = nn.Linear(config.n_embd, up_width, bias="up_proj" in config.biases)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias="down_proj" in config.biases)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.dropout(self.down_proj(self._activate(self.up_proj(x))))

    def _activate(self, h: Tensor) -> Tensor:
        """(B, T, up width) -> (B, T, n_inner)"""
        if self.mlp in GATED:
            gate, value = h.chunk(2, dim=-1)
            return ACTIVATIONS[self.mlp](gate) * value
        return ACTIVATIONS[self.mlp](h)
