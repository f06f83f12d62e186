"""How often tokens occur."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

COUNTED = 20_000_000  # tokens at most


class Readable(Protocol):
    """A stream of token ids."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Ids from a place on."""


def sampled_counts(stream: Readable, vocab_size: int, most: int = COUNTED
                   ) -> np.ndarray[Any, Any]:
    """How often each id occurs, (V,): in evenly spaced stretches, of streams longer than `most`."""
    stretch, pieces = len(stream), 1
    if len(stream) > most:
        pieces = 100
        stretch = most // pieces
    counts = np.zeros(vocab_size, dtype=np.int64)
    for i in range(pieces):
        start = i * len(stream) // pieces
        counts += np.bincount(stream.read(start, min(start + stretch, len(stream))),
                              minlength=vocab_size)
    return counts
