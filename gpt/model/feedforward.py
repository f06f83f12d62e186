"""The feed-forward layer: each position on its own, through a wider space and back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gpt.configuration import ModelConfig


class FeedForward(nn.Module):
    """Up, a non-linearity, down.

    swiglu gates one half of a twice as wide projection with the other (arXiv:2002.05202);
    gelu is exact, gelu_tanh GPT-2's approximation (arXiv:1606.08415); relu2 is ReLU squared
    (arXiv:2109.08668), which no standard export format can express.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.mlp = config.mlp
        up_width = 2 * config.n_inner if config.mlp == "swiglu" else config.n_inner
        self.up_proj = nn.Linear(config.n_embd, up_width, bias=config.bias)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        return self.dropout(self.down_proj(self._activate(self.up_proj(x))))

    def _activate(self, h: Tensor) -> Tensor:
        """(B, T, up width) -> (B, T, n_inner)"""
        if self.mlp == "swiglu":
            gate, value = h.chunk(2, dim=-1)
            return F.silu(gate) * value
        if self.mlp == "relu2":
            return F.relu(h).square()
        return F.gelu(h, approximate="tanh" if self.mlp == "gelu_tanh" else "none")
