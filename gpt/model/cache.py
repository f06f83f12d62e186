"""Keys and values of the tokens read so far, so that each new token is computed once."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from gpt.configuration import ModelConfig
from gpt.model.visibility import visible_in_rows, visible_keys, within_reach


class KVCache:
    """Space for the keys and values of several texts, a row each, set aside beforehand.

    keys, values: of each layer, (B, n_kv_head, max_tokens, D).
    lengths: how many tokens of each row have been read, (B,) int64: the position of its next one.
    What lies behind them is never read, so a row is emptied or cut by setting its length.
    n_kv_head: None: the configuration's; a model that is spread over ranks has some of them here.
    """

    def __init__(self, config: ModelConfig, batch_size: int, max_tokens: int,
                 device: torch.device, dtype: torch.dtype, n_kv_head: int | None = None):
        shape = (batch_size, n_kv_head or config.n_kv_head, max_tokens, config.head_dim)
        # Not whatever was there: attention multiplies hidden values by 0, and 0 · NaN is NaN.
        self.keys, self.values = ([torch.zeros(shape, device=device, dtype=dtype)
                                   for _ in range(config.n_layer)] for _ in "kv")
        self._windows, self._device, self.max_tokens = config.windows, device, max_tokens
        self.lengths = np.zeros(batch_size, dtype=np.int64)

    @property
    def batch_size(self) -> int:
        """How many texts there is space for."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max())

    def layers(self, T: int) -> list[LayerCache]:
        """Each layer's part, for the next T tokens."""
        spans = {window: self._span(T, window) for window in set(self._windows)}
        places: slice | Tensor
        if self._alike:
            places = slice(int(self.lengths[0]), int(self.lengths[0]) + T)
        else:
            places = self.positions(T)
        return [LayerCache(keys, values, places, slice(*spans[window])) for keys, values, window
                in zip(self.keys, self.values, self._windows, strict=True)]

    def rows(self, start: int, stop: int) -> KVCache:
        """Some of the rows, as a cache that shares their space and their lengths."""
        if (start, stop) == (0, self.batch_size):
            return self
        part = copy.copy(self)
        part.keys, part.values = ([space[start:stop] for space in spaces]
                                  for spaces in (self.keys, self.values))
        part.lengths = self.lengths[start:stop]
        return part

    def copy_row(self, source: int, target: int) -> None:
        """Make one row what another is."""
        length = self.lengths[target] = self.lengths[source]
        for space in (*self.keys, *self.values):
            space[target, :, :length] = space[source, :, :length]

    def part(self, row: int, start: int, stop: int) -> list[Tensor]:
        """Keys and values of some tokens of a row, (n_kv_head, T, D) each: a copy."""
        return [space[row, :, start:stop].clone() for space in (*self.keys, *self.values)]

    def put(self, row: int, start: int, part: list[Tensor]) -> None:
        """Write what `part` gave into a row, whose length stays as it is."""
        for space, numbers in zip((*self.keys, *self.values), part, strict=True):
            space[row, :, start:start + numbers.size(1)] = numbers

    def reorder(self, sources: Tensor) -> None:
        """Make row i what row sources[i] is, for the first rows.  (n,) int64"""
        n, length, chosen = len(sources), self.longest, sources.to(self._device)
        for space in (*self.keys, *self.values):
            space[:n, :, :length] = space[chosen, :, :length]
        self.lengths[:n] = self.lengths[sources.cpu().numpy()]

    def positions(self, T: int) -> Tensor:
        """Where the next T tokens stand: (T,) if all rows are equally long, else (B, T)."""
        starts = torch.tensor(self.lengths[:1] if self._alike else self.lengths[:, None],
                              device=self._device)
        return starts + torch.arange(T, device=self._device)

    def visible(self, T: int, window: int | None) -> Tensor | None:
        """What the next T tokens may read of the S keys that `LayerCache.append` returns.

        (T, S), (B, 1, T, S), or None: see gpt/model/visibility.py.
        """
        if self._alike:
            return visible_keys(T, int(self.lengths[0]) + T, window, self._device)
        keys = torch.arange(*self._span(T, window), device=self._device)
        return visible_in_rows(self.positions(T), keys, window)

    def advance(self, T: int) -> None:
        """T tokens more have been read, in every row."""
        self.lengths += T

    @property
    def _alike(self) -> bool:
        return bool((self.lengths == self.lengths[0]).all())

    def _span(self, T: int, window: int | None) -> tuple[int, int]:
        """From the first key that any of the next T tokens of any row may read, to the last."""
        shortest = int(self.lengths.min())
        return shortest + T - within_reach(shortest + T, T, window), self.longest + T


class StaticCache(KVCache):
    """A cache for one more token of each row, at places that a tensor holds.

    No shape, and no number outside of tensors, depends on how long the texts are, so the same
    kernels serve every token. It shares the space of the cache that it is made of.
    """

    def __init__(self, cache: KVCache, places: Tensor):
        """places: of each row's token, (B, 1) int64; what it reads lies up to there."""
        vars(self).update(vars(cache))
        self.lengths, self._places = np.zeros_like(cache.lengths), places

    @property
    def longest(self) -> int:
        """Not known here: whoever fills in the places sees to it that they lie in the cache."""
        return 0

    def layers(self, T: int) -> list[LayerCache]:
        """Each layer's part."""
        return [LayerCache(keys, values, self._places, slice(None)) for keys, values
                in zip(self.keys, self.values, strict=True)]

    def positions(self, T: int) -> Tensor:
        """(B, 1)"""
        return self._places

    def visible(self, T: int, window: int | None) -> Tensor:
        """(B, 1, 1, max_tokens)"""
        keys = torch.arange(self.max_tokens, device=self._device)
        return visible_in_rows(self._places, keys, window)

    def advance(self, T: int) -> None:
        """Nothing: whoever fills in the places counts."""


class LayerCache:
    """One layer's keys and values, (B, n_kv_head, max_tokens, D) each.

    places: where the next T tokens go, alike in all rows or (B, T). span: keys that any of them may
    read.
    """

    def __init__(self, keys: Tensor, values: Tensor, places: slice | Tensor, span: slice):
        self._keys, self._values, self._places, self._span = keys, values, places, span

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens' keys and values; returns the S that any of the T may read.

        (B, n_kv_head, T, D) -> (B, n_kv_head, S, D)
        """
        for space, new in ((self._keys, k), (self._values, v)):
            if isinstance(self._places, slice):
                space[:, :, self._places] = new
            else:
                rows = torch.arange(len(space), device=space.device).unsqueeze(1)  # (B, 1)
                space[rows, :, self._places] = new.transpose(1, 2)
        return self._keys[:, :, self._span], self._values[:, :, self._span]
