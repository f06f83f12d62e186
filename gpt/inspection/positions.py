"""How a model sees the order of tokens, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpt.model import GPT
from gpt.model.embedding import sinusoids
from gpt.model.rope import rope_frequencies


@dataclass(frozen=True)
class Positions:
    """What is added to tokens' vectors, or how far each pair of a head turns per token."""

    kind: str  # rope, learned, sinusoidal or none, as in ModelConfig
    table: np.ndarray | None = None  # (T, C), where it is learned or sinusoidal
    frequencies: np.ndarray | None = None  # (D / 2,), in radians, where it is rope


@torch.no_grad()
def position_encoding(model: GPT, T: int) -> Positions:
    """Of the first T positions. Raises ValueError for more than block_size."""
    model.refuse_too_long(T, None)
    config = model.config
    if config.position == "rope":
        return Positions("rope", frequencies=rope_frequencies(config).numpy())
    if config.position == "learned":
        table = model.embedding.position_embedding.weight[:T].float().cpu()
        return Positions("learned", table.numpy().copy())
    if config.position == "sinusoidal":
        return Positions("sinusoidal", sinusoids(torch.arange(T), config.n_embd).numpy())
    return Positions("none")
