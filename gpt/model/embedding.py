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
        self.token_embedding = _table(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = _table(config.block_size, config.n_embd)
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


def _table(rows: int, width: int) -> nn.Embedding:
    """A table that is not filled: GPT.initialise or a checkpoint does that."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sine in even columns and cosine in odd ones, wavelengths from 2π to 10,000 · 2π tokens.

    (…, T) -> (…, T, width) float32.  Source: Vaswani et al. 2017, section 3.5.
    """
    frequencies = _frequencies(width, base=10_000.0, device=positions.device)
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def rope_frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """How far each pair of a head turns per token, (D/2,) float32 in radians.

    With rope_scaling, pairs that turn slowly are slowed down further, as in Llama 3.
    Source: arXiv:2104.09864, section 3.2.2; the scaling: see RopeScaling.
    """
    frequencies = _frequencies(config.head_dim, config.rope_base, device)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = frequencies * scaling.original_block_size / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast, stays; 0: slow, is divided
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotations(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's rotation in each pair of a head.

    (…, T) and (D/2,) -> two of (…, T, 1, D/2) float32, to broadcast over heads.
    """
    angles = (positions.float().unsqueeze(-1) * frequencies).unsqueeze(-2)
    return angles.cos(), angles.sin()


AT_LEAST = 4096  # positions in a table, where the context has as many


class RotationTable:
    """Rotations of positions, computed once for a device and then looked up: in compiled code they
    would be computed anew by every layer that rotates."""

    def __init__(self, config: ModelConfig):
        self._config = config
        self._cos = self._sin = torch.empty(0)

    def cover(self, length: int, device: torch.device) -> None:
        """Have the positions before `length` ready on a device, and usually all of the context."""
        if len(self._cos) < length or self._cos.device != device:
            length = max(length, min(self._config.block_size, AT_LEAST))
            with torch.inference_mode(False):  # what is made in it could not be trained with
                self._cos, self._sin = rotations(torch.arange(length, device=device),
                                                 rope_frequencies(self._config, device))

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine as they are now: a longer context makes new ones."""
        return self._cos, self._sin

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `rotations`, of positions that are covered: (…, T) -> two of (…, T, 1, D/2)"""
        return self._cos[positions], self._sin[positions]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head's pairs (i, i + D/2) by their position's angle: (B, T, H, D) -> the same.

    The product of a rotated query and key then depends on how far apart they are, not on where.
    Pairs are laid out as in Llama and Qwen3, so that weights move between them and us unchanged.
    """
    cos, sin = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _frequencies(width: int, base: float, device: torch.device | None) -> Tensor:
    """One per pair of columns, (width/2,): from 1 down to almost 1/base, by equal ratios."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1 / base ** exponents  # to the last bit as in transformers, so that far angles agree
