"""Keys and values of the tokens read so far, so that each new token is computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt.config import ModelConfig
from gpt.model.visibility import within_reach


class LayerCache:
    """One layer's keys and values, in space set aside beforehand.

    window: how many tokens its attention reaches back, the reading one included; None: to the
    first.
    """

    def __init__(self, batch_size: int, max_tokens: int, config: ModelConfig, window: int | None,
                 device: torch.device, dtype: torch.dtype):
        shape = (batch_size, config.n_kv_head, max_tokens, config.head_dim)
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._window, self._length = window, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens' keys and values; returns the last S, those that any of the T may read.

        (B, n_kv_head, T, D) -> (B, n_kv_head, S, D)
        """
        start, self._length = self._length, self._length + k.size(2)
        self._keys[:, :, start:self._length] = k
        self._values[:, :, start:self._length] = v
        first = self._length - within_reach(self._length, k.size(2), self._window)
        return self._keys[:, :, first:self._length], self._values[:, :, first:self._length]


class KVCache:
    """A LayerCache for every layer."""

    def __init__(self, config: ModelConfig, batch_size: int, max_tokens: int,
                 device: torch.device, dtype: torch.dtype):
        self.length = 0  # tokens read so far: the position of the next one
        self.max_tokens = max_tokens
        self.layers = [LayerCache(batch_size, max_tokens, config, window, device, dtype)
                       for window in config.windows]
