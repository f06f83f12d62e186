"""How tokens become vectors, and how the model sees their order.

Shape letters in gpt/model: B batch, T query tokens, S key tokens, C n_embd, H heads, D head width,
V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpt.configuration import ModelConfig


class Embedding(nn.Module):
    """Token vectors plus, where positions are added rather than rotated, position vectors."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.vocab_size is not None, "the vocabulary's size comes from the tokenizer"
        self.position, self.n_embd = config.position, config.n_embd
        self.scale = config.embedding_scale
        self.token_embedding = _table(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = _table(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T) token ids, (T,) or (B, T) positions -> (B, T, C)"""
        x = self.token_embedding(tokens)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype)  # rounded as Gemma rounds it
        if self.position == "learned":
            x = x + self.position_embedding(positions)
        elif self.position == "sinusoidal":
            # Small token vectors would drown in waves of amplitude 1.
            x = x * math.sqrt(self.n_embd) + sinusoids(positions, self.n_embd).to(x.dtype)
        return self.dropout(x)


def _table(rows: int, width: int) -> nn.Embedding:
    """A table that is not filled: GPT.initialise or a checkpoint does that."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine in even columns and cosine in odd ones, wavelengths from 2π to 10,000 · 2π tokens.

    (…, T) -> (…, T, width) float32.  Source: Vaswani et al. 2017, section 3.5.
    """
    frequencies = frequencies_of(width, base=10_000.0, device=positions.device)
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def frequencies_of(width: int, base: float, device: torch.device | None = None) -> Tensor:
    """One per pair of columns, (width/2,): from 1 down to almost 1/base, by equal ratios."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1 / base ** exponents  # to the last bit as in transformers, so that far angles agree
