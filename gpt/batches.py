"""From shards to (inputs, targets), in an order that is a function of (seed, index) alone.

Training sequence n is the same whatever the batch size, the number of restarts or how often
evaluation runs: epoch e = n // N visits all N sequences once, in the order of a permutation that is
computed, not stored. Step s takes sequences s·B to s·B + B − 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt.errors import UserError
from gpt.shards import TokenStream

IGNORE = -100  # a target that is not supervised; PyTorch's cross-entropy skips it


@dataclass(frozen=True)
class MicroBatch:
    """What one backward pass reads: inputs and targets, both (B, T) int64 on the CPU.

    tokens: inputs that are text, not padding.
    """

    inputs: Tensor
    targets: Tensor
    tokens: int

    @property
    def supervised_tokens(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets != IGNORE).sum())


class Batches(Protocol):
    """What the training loop reads. Implemented by Windows here and by Rows for fine-tuning."""

    def step(self, step: int) -> list[MicroBatch]:
        """The global batch of one optimizer step, cut into micro-batches."""
        ...

    @property
    def sequences_per_epoch(self) -> int:
        """Distinct training sequences."""
        ...

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a sequence, on average."""
        ...


class SizedBatches(Protocol):
    """What evaluation reads: a known number of batches, again and again the same."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[MicroBatch]: ...


_ROUNDS = 6


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


def sequence_order(indices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Which of n sequences training reads at each index; epochs follow without a gap."""
    order = np.empty_like(indices)
    for epoch in np.unique(indices // n):
        chosen = indices // n == epoch
        order[chosen] = Permutation(n, seed, int(epoch))(indices[chosen] % n)
    return order


class Windows:
    """Pretraining sequences: consecutive windows of block_size tokens over the whole stream.

    The last window is moved back to end with the stream, so every token is read in every epoch.
    """

    def __init__(self, stream: TokenStream, block_size: int, batch_size: int,
                 micro_batch_size: int, seed: int):
        if len(stream) <= block_size:
            raise UserError(f"the training split has {len(stream)} tokens, fewer than one sequence "
                            f"of model.block_size + 1 = {block_size + 1}; give more text or a "
                            "smaller model.block_size")
        self._stream, self._block_size = stream, block_size
        self._batch_size, self._micro_batch_size = batch_size, micro_batch_size
        self._seed = seed

    @property
    def sequences_per_epoch(self) -> int:
        """Windows in the stream."""
        return -(-(len(self._stream) - 1) // self._block_size)

    @property
    def tokens_per_sequence(self) -> float:
        """Every window is full."""
        return self._block_size

    def step(self, step: int) -> list[MicroBatch]:
        """The global batch of one step; each target is the token after its input."""
        indices = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        windows = sequence_order(indices, self.sequences_per_epoch, self._seed)
        rows = torch.from_numpy(np.stack([self._window(int(w)) for w in windows]))
        return [MicroBatch(part[:, :-1], part[:, 1:], len(part) * self._block_size)
                for part in rows.split(self._micro_batch_size)]

    def _window(self, number: int) -> np.ndarray:
        start = min(number * self._block_size, len(self._stream) - 1 - self._block_size)
        return self._stream.read(start, start + self._block_size + 1)


class EvaluationWindows:
    """The stream once, in order, every token a target exactly once, in batches.

    first_context: what the first token is predicted from (the end-of-text token).
    max_tokens: score evenly spaced windows of about that many tokens; None scores all.
    """

    def __init__(self, stream: TokenStream, first_context: int, block_size: int, batch_size: int,
                 max_tokens: int | None = None):
        self._stream, self._first_context, self._block_size = stream, first_context, block_size
        starts: Sequence[int] = range(0, len(stream), block_size)
        if max_tokens is not None and max_tokens < len(stream):
            wanted = max(1, max_tokens // block_size)
            starts = [starts[i * len(starts) // wanted] for i in range(wanted)]
        self._batches = [starts[i:i + batch_size] for i in range(0, len(starts), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        for starts in self._batches:
            rows = [self._window(start) for start in starts]
            inputs, targets = (torch.from_numpy(np.stack(side)) for side in zip(*rows, strict=True))
            yield MicroBatch(inputs, targets, int((targets != IGNORE).sum()))

    def _window(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets from one place on, filled up at the stream's end."""
        tokens = self._stream.read(start, min(start + self._block_size, len(self._stream)))
        before = self._stream.read(start - 1, start) if start else [self._first_context]
        filler = self._block_size - len(tokens)
        inputs = np.pad(np.concatenate((before, tokens[:-1])), (0, filler),
                        constant_values=self._first_context)
        return inputs, np.pad(tokens, (0, filler), constant_values=IGNORE)
