"""How a model sees the order of tokens, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpt.model import GPT
from gpt.model.embedding import rope_frequencies, sinusoids


@dataclass(frozen=True)
class Positions:
    """kind: rope, learned, sinusoidal or none, as in ModelConfig.

    table: (T, C), what is added to the vectors of tokens, where it is learned or sinusoidal.
    frequencies: (D / 2,), how far each pair of a head turns per token, in radians, with rope.
    """

    kind: str
    table: np.ndarray | None = None
    frequencies: np.ndarray | None = None


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
