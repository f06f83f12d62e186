"""The order of training: what is read at each index is a function of (seed, index) alone.

Step s reads indices s·B to s·B + B − 1; ranks and micro-batches cut that stretch and change nothing
in it. Index n lies in epoch e = n // N, which visits all N sequences once, in the order of a
permutation that is computed, not stored.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 6
_STRETCH = 512


class Permutation:
    """A pseudo-random order of range(n) in O(1) memory, for n up to 2^62.

    A Feistel network permutes 2^(2k) ≥ n numbers; results that are ≥ n are sent through it again
    until they land inside (cycle walking), which keeps it one-to-one.
    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 4.
    """

    def __init__(self, n: int, *keys: int):
        if not 1 <= n <= 2**62:
            raise ValueError(f"a permutation needs 1 to 2^62 items, not {n}")
        self.n = n
        self._half_bits = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        seeds = np.random.SeedSequence(keys[0], spawn_key=keys[1:])
        self._round_keys = [np.uint64(w) for w in seeds.generate_state(_ROUNDS, np.uint64)]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Where each index goes; (k,) int64 in range(n) -> (k,) int64, a one-to-one map."""
        x = self._encrypt(indices.astype(np.uint64))
        while (outside := x >= self.n).any():
            x[outside] = self._encrypt(x[outside])
        return x.astype(np.int64)

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash. Source: Steele, Lea and Flood 2014, SplitMix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sequence_order(indices: np.ndarray, n: int, *keys: int) -> np.ndarray:
    """Which of n sequences is read at each index; epochs follow without a gap.

    keys: the seed, and whatever else tells this order from others of the same seed.
    """
    return permuted_in_blocks(indices, n, *keys) % n


def permuted_in_blocks(indices: np.ndarray, n: int, *keys: int) -> np.ndarray:
    """Indices, each block of n of them permuted within itself.  (k,) int64 -> (k,) int64"""
    permuted = np.empty_like(indices)
    stretches = indices // _STRETCH
    for stretch in set(stretches.tolist()):
        chosen = stretches == stretch
        permuted[chosen] = _permuted_stretch(stretch, n, keys)[indices[chosen] % _STRETCH]
    return permuted


@functools.lru_cache(maxsize=64)
def _permuted_stretch(stretch: int, n: int, keys: tuple[int, ...]) -> np.ndarray:
    """A stretch of the order at once: for numpy it costs little more than a few indices of it."""
    indices = np.arange(stretch * _STRETCH, (stretch + 1) * _STRETCH)
    permuted = np.empty_like(indices)
    blocks = indices // n
    for block in np.unique(blocks):
        chosen = blocks == block
        permuted[chosen] = block * n + Permutation(n, *keys, int(block))(indices[chosen] % n)
    return permuted


@dataclass(frozen=True)
class Order:
    """Which indices one process reads at each step, and in what portions.

    batch_size: sequences per step, over all ranks. rank: this process, of world_size in all; each
    reads a contiguous share of the global batch, as even as can be.
    """

    batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    def indices(self, step: int) -> np.ndarray:
        """This rank's share of a step; empty if there are more ranks than sequences."""
        share, left_over = divmod(self.batch_size, self.world_size)
        first = step * self.batch_size + self.rank * share + min(self.rank, left_over)
        stop = first + share + (self.rank < left_over)
        return np.arange(first, stop)


def portions(lengths: Sequence[int], sequences: int, tokens: int | None = None) -> Iterator[slice]:
    """Stretches of sequences that are read together, in order; their lengths rise.

    At most so many sequences, and at most so many tokens, padding included; at least one.
    """
    start = 0
    for i, length in enumerate(lengths):
        too_wide = tokens is not None and i > start and (i + 1 - start) * length > tokens
        if too_wide or i - start == sequences:
            yield slice(start, i)
            start = i
    if start < len(lengths):
        yield slice(start, len(lengths))
