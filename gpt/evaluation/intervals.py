"""How far a figure would move with other documents of the same kind: the bootstrap.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS, SHARE = 2000, 0.95
MOST_UNITS = 10_000  # that are drawn one by one; neighbours of more are drawn together
FEWEST_DOCUMENTS = 10  # fewer say little of what others would give
BLOCK_BYTES = 4096
_AT_ONCE = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """Where a figure lies in 95 of 100 draws."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"95 of 100 draws: {self.low:.4f} to {self.high:.4f}"


@dataclass(frozen=True)
class Units:
    """What is drawn anew: pieces of a text.

    of: (N,) int64, the piece of each token, never falling. what: documents, or blocks of a text
    that has few.
    """

    of: np.ndarray
    count: int
    what: str

    @classmethod
    def of_text(cls, documents: np.ndarray, text_bytes: np.ndarray) -> Units:
        """Of tokens whose document, (N,) int64, and number of bytes, (N,) int64, are known.

        A text of fewer than ten documents is cut into blocks of 4,096 bytes, so that pieces are
        alike whatever tokens the text is written in.
        """
        count = int(documents[-1]) + 1 if len(documents) else 0
        if count >= FEWEST_DOCUMENTS:
            return cls(documents, count, "documents")
        begins = np.cumsum(text_bytes) - text_bytes
        of = begins // BLOCK_BYTES
        return cls(of, int(of[-1]) + 1 if len(of) else 0, f"blocks of {BLOCK_BYTES:,} bytes")

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of numbers of tokens, in each piece: (N,) -> (count,) float64."""
        return np.bincount(self.of, weights=values, minlength=self.count)


def interval(parts: np.ndarray, wholes: np.ndarray, seed: int = 0) -> Interval | None:
    """Of Σ parts / Σ wholes over units, (units,) each; None for a single unit.

    The same seed draws the same units: of two models' figures, the interval of the difference
    comes from the differences of their parts.
    """
    if len(parts) < 2:
        return None
    parts, wholes = _together(parts), _together(wholes)
    generator, units = np.random.default_rng(seed), len(parts)
    ratios = []
    for start in range(0, DRAWS, step := max(1, _AT_ONCE // units)):
        drawn = generator.integers(0, units, (min(step, DRAWS - start), units))
        ratios.append(parts[drawn].sum(1) / np.maximum(wholes[drawn].sum(1), 1e-30))
    tail = (1 - SHARE) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Interval(float(low), float(high))


def _together(sums: np.ndarray) -> np.ndarray:
    """At most MOST_UNITS sums: those of neighbouring units are added up."""
    if len(sums) <= MOST_UNITS:
        return sums
    starts = np.arange(MOST_UNITS) * len(sums) // MOST_UNITS
    return np.add.reduceat(sums, starts)
