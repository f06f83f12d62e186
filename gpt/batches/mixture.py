"""Several sources in one training order, each with its share, counted out rather than drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.batches.batch import IGNORE, MicroBatch, Origin, Sequences, Shuffled
from gpt.batches.order import permuted_in_blocks
from gpt.errors import UserError

LAST_SEGMENT = 2**31  # of padding: numbers never fall along a row
SLOTS = 4096  # in a block: shares are exact in each, and multiples of 1/4096
_SLOT_KEY, _SOURCE_KEY = 1, 2


class Mixture:
    """Sequences of several sources, mixed by weight; a source that runs out begins anew.

    Every block of 4096 indices holds each source's number of slots, in an order of the block's own,
    and slot j of a source in block b is its sequence b·m + j, m being its slots per block. So
    which sequence an index reads is computed from (seed, index), and none of a source is skipped.
    epoch_of: the source whose end is an epoch's; None: an epoch has as many sequences as all.
    """

    def __init__(self, sources: Sequence[Sequences], weights: Sequence[float], seed: int,
                 epoch_of: int | None = None):
        self._seed = seed
        self._sources = [Shuffled(source, seed, _SOURCE_KEY, number)
                         for number, source in enumerate(sources)]
        self._slots = apportion(weights, SLOTS)
        self._firsts = np.cumsum(self._slots) - self._slots
        shares = self._slots / SLOTS
        self.sequences_per_epoch = sum(len(source) for source in sources)
        if epoch_of is not None:
            self.sequences_per_epoch = math.ceil(len(sources[epoch_of]) / shares[epoch_of])
        self.tokens_per_sequence = float(sum(
            share * source.tokens_per_sequence for share, source in zip(shares, sources,
                                                                        strict=True)))

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which source each index reads, and which index of that source.  (k,) -> two of (k,)"""
        block, slot = np.divmod(permuted_in_blocks(indices, SLOTS, self._seed, _SLOT_KEY), SLOTS)
        source = np.searchsorted(self._firsts, slot, side="right") - 1
        return source, block * self._slots[source] + slot - self._firsts[source]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Of the sequences at these indices, in tokens."""
        sources, places = self.places(indices)
        lengths = np.empty(len(indices), dtype=np.int64)
        for source in np.unique(sources):
            own = sources == source
            lengths[own] = self._sources[source].lengths(places[own])
        return lengths

    def origins(self, index: int) -> list[Origin]:
        """What the sequence at an index is made of."""
        [source], [place] = self.places(np.array([index]))
        return self._sources[source].origins(int(place))

    def read(self, indices: np.ndarray) -> MicroBatch:
        """The sequences at these indices, side by side."""
        sources, places = self.places(indices)
        parts = [self._sources[source].read(places[sources == source])
                 for source in np.unique(sources)]
        return _joined(parts, np.argsort(np.argsort(sources, kind="stable")))


def _joined(parts: list[MicroBatch], order: np.ndarray) -> MicroBatch:
    """Micro-batches as one, padded on the right; row i is row order[i] of all."""
    rows, width = torch.from_numpy(order), max(part.inputs.size(1) for part in parts)

    def column(name: str, padding: int) -> Tensor | None:
        """One tensor of all; rows that need none of its kind get padding alone."""
        given = [getattr(part, name) for part in parts]
        kinds = {own.dtype for own in given if own is not None}
        if not kinds:
            return None
        [dtype] = kinds
        filled = [torch.zeros_like(part.inputs, dtype=dtype) if own is None else own
                  for part, own in zip(parts, given, strict=True)]
        return torch.cat([F.pad(own, (0, width - own.size(1)), value=padding)
                          for own in filled])[rows]

    inputs, targets = column("inputs", 0), column("targets", IGNORE)
    assert inputs is not None and targets is not None
    return MicroBatch(inputs, targets, sum(part.tokens for part in parts),
                      column("segments", LAST_SEGMENT), column("prompts", 0))


def apportion(weights: Sequence[float], slots: int) -> np.ndarray:
    """Slots for each weight, as near to its share as whole numbers come.  (sources,) int64

    What rounding down leaves goes to the largest remainders (Hamilton's method). Raises UserError
    for a weight that is too small for a slot.
    """
    exact = np.asarray(weights) / sum(weights) * slots
    given = np.floor(exact).astype(np.int64)
    left = slots - int(given.sum())
    given[np.argsort(given - exact, kind="stable")[:left]] += 1
    if not given.all():
        small = weights[int(given.argmin())]
        raise UserError(f"the weight {small:g} of a source is less than 1/{slots} of all weights "
                        f"({sum(weights):g}); raise it, or leave that source out")
    return given
