"""What prompts begin with, remembered: a system prompt that many share is read once.

Keys and values are remembered in the stretches in which the engine reads a text, counted from its
start: a prompt of which some are known is read on from there by the same calls as one that is new,
and so to the same bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from gpt.model import KVCache


class Prefixes:
    """Stretches of texts, the latest used ones, each with the keys and values of all layers.

    tokens: how many at most; 0: none. stretch: tokens that are read at once.
    """

    def __init__(self, tokens: int, stretch: int):
        self._most, self._stretch = tokens // stretch, stretch
        self._known: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    def recall(self, text: Sequence[int], cache: KVCache, row: int) -> int:
        """Put into an empty row of the cache what is known of a text, but not its last token, which
        has to be read for what follows it; returns how many tokens these are."""
        found: list[bytes] = []
        for key in self._keys(text[:-1] if self._known else ()):
            if key not in self._known:
                break
            cache.put(row, self._stretch * len(found), self._known[key])
            found.append(key)
        for key in reversed(found):  # what others go on from is forgotten after them
            self._known.move_to_end(key)
        return self._stretch * len(found)

    def keep(self, text: Sequence[int], cache: KVCache, row: int) -> None:
        """Remember the stretch that a text ends with, if it ends with a whole one, which a row of
        the cache holds."""
        if not self._most or len(text) % self._stretch:
            return
        *_, key = self._keys(text)
        if key not in self._known:
            self._known[key] = cache.part(row, len(text) - self._stretch, len(text))
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def _keys(self, text: Sequence[int]) -> Iterator[bytes]:
        """Of each whole stretch, what tells it and all before it from others."""
        digest = hashlib.sha256()
        for end in range(self._stretch, len(text) + 1, self._stretch):
            digest.update(np.asarray(text[end - self._stretch:end], dtype=np.int64).tobytes())
            yield digest.digest()
