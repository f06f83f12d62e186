"""Rotary positions: pairs of a head's numbers turn by an angle that grows with the position.

Source: Su et al. 2021 (arXiv:2104.09864), section 3.2.2. Shape letters as in embedding.py; R
rope_dim, the numbers of a head that turn.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.model.embedding import frequencies_of

AT_LEAST = 4096  # positions in a table, where the context has as many
Angles: TypeAlias = "tuple[Tensor, Tensor]"  # cosine and sine of each position in each pair


def rope_frequencies(config: ModelConfig, rotation: str = "global",
                     device: torch.device | None = None) -> Tensor:
    """How far each pair of a head turns per token, (R/2,) float32 in radians.

    rotation: of ModelConfig.rotations. With rope_scaling, pairs that turn slowly are slowed down
    further: see RopeScaling.
    """
    if rotation == "local":
        assert config.local_rope_base is not None
        return frequencies_of(config.rope_dim, config.local_rope_base, device)
    frequencies = frequencies_of(config.rope_dim, config.rope_base, device)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "longrope":
        return frequencies / torch.tensor(scaling.factors(config.block_size), device=device)
    kept = _kept_by_turns(config) if scaling.kind == "llama3" else _kept_by_place(config)
    kept = kept.to(frequencies.device)  # 1: fast, stays; 0: slow, is divided
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _kept_by_turns(config: ModelConfig) -> Tensor:
    """How much of each pair's frequency stays: Llama 3's mixture, by its turns.  (R/2,)"""
    scaling = config.rope_scaling
    assert scaling is not None
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    frequencies = frequencies_of(config.rope_dim, config.rope_base)
    turns = frequencies * scaling.original_block_size / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_place(config: ModelConfig) -> Tensor:
    """The same for YaRN: a ramp over the pairs, between two that turn a given number of times."""
    scaling, R = config.rope_scaling, config.rope_dim
    assert scaling is not None

    def pair_of(turns: float) -> float:
        wavelength = scaling.original_block_size / (turns * 2 * math.pi)
        return R * math.log(wavelength) / (2 * math.log(config.rope_base))

    first = max(math.floor(pair_of(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_of(scaling.beta_slow)), R - 1)
    width = last - first or 0.001  # as YaRN's code has it, where the ramp is a step
    return 1 - ((torch.arange(R // 2) - first) / width).clamp(0, 1)


def attention_factor(config: ModelConfig, rotation: str = "global") -> float:
    """What rotated numbers are multiplied with, so that far scores do not wash out."""
    scaling = config.rope_scaling
    if scaling is None or rotation == "local" or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_block_size))


def rotations(positions: Tensor, frequencies: Tensor, factor: float = 1.0) -> Angles:
    """Cosine and sine of each position's rotation in each pair of a head, times a factor.

    (…, T) and (R/2,) -> two of (…, T, 1, R/2) float32, to broadcast over heads.
    """
    angles = (positions.float().unsqueeze(-1) * frequencies).unsqueeze(-2)
    return angles.cos() * factor, angles.sin() * factor


class RotationTable:
    """Rotations of positions, computed once for a device and then looked up: in compiled code they
    would be computed anew by every layer that rotates."""

    def __init__(self, config: ModelConfig):
        self._config = config
        self._tables = {rotation: (torch.empty(0), torch.empty(0))
                        for rotation in config.rotations if rotation is not None}

    def cover(self, length: int, device: torch.device) -> None:
        """Have the positions before `length` ready on a device, and usually all of the context."""
        for rotation, (cos, _) in self._tables.items():
            if len(cos) < length or cos.device != device:
                length = max(length, min(self._config.block_size, AT_LEAST))
                with torch.inference_mode(False):  # what is made in it could not be trained with
                    self._tables[rotation] = rotations(
                        torch.arange(length, device=device),
                        rope_frequencies(self._config, rotation, device),
                        attention_factor(self._config, rotation))

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """Cosines and sines as they are now: a longer context makes new ones."""
        return tuple(table for tables in self._tables.values() for table in tables)

    def at(self, positions: Tensor | slice) -> dict[str | None, Angles | None]:
        """As `rotations`, of positions that are covered, by which a layer rotates: (…, T) -> two of
        (…, T, 1, R/2); None for layers that do not."""
        return {None: None, **{rotation: (cos[positions], sin[positions])
                               for rotation, (cos, sin) in self._tables.items()}}


def rotate(x: Tensor, rotation: Angles) -> Tensor:
    """Turn each head's pairs (i, i + R/2) by their position's angle: (B, T, H, D) -> the same.

    The product of a rotated query and key then depends on how far apart they are, not on where.
    Pairs are laid out as in Llama and Qwen3, so that weights move between them and us unchanged;
    what lies behind the pairs stays as it is.
    """
    cos, sin = rotation
    half = cos.size(-1)
    a, b, rest = x.float().split((half, half, x.size(-1) - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
