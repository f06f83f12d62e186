"""How tokens become vectors, and how the model sees their order.

Shape letters in gpt/model: B batch, T query tokens, S key tokens, C n_embd, H heads, D head width,
V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt.config import ModelConfig


class Embedding(nn.Module):
    """Token vectors plus, where positions are added rather than rotated, position vectors."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
        self.position, self.n_embd = config.position, config.n_embd
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T) token ids, (T,) or (B, T) positions -> (B, T, C)"""
        x = self.token_embedding(tokens)
        if self.position == "learned":
            x = x + self.position_embedding(positions)
        elif self.position == "sinusoidal":
            # Small token vectors would drown in waves of amplitude 1.
            x = x * math.sqrt(self.n_embd) + sinusoids(positions, self.n_embd).to(x.dtype)
        return self.dropout(x)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine in even columns and cosine in odd ones, wavelengths from 2π to 10,000 · 2π tokens.

    (…, T) -> (…, T, width) float32.  Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(positions, width, base=10_000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def rotations(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's rotation in each pair of a head.

    (…, T) -> two of (…, T, 1, D/2) float32, to broadcast over heads.  Source: arXiv:2104.09864.
    """
    angles = _angles(positions, head_dim, base).unsqueeze(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head's pairs (i, i + D/2) by their position's angle: (B, T, H, D) -> the same.

    The product of a rotated query and key then depends on how far apart they are, not on where.
    Pairs are laid out as in Llama and Qwen3, so that weights move between them and us unchanged.
    """
    cos, sin = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _angles(positions: Tensor, width: int, base: float) -> Tensor:
    """Position times frequency, (…, T, width/2); frequencies fall from 1 to 1/base, by ratios."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    return positions.float().unsqueeze(-1) * base ** -exponents
