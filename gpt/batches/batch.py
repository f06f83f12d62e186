"""What a step reads: sequences in their order, side by side, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gpt.batches.order import Order, portions, sequence_order
from gpt.machine.device import Machine

IGNORE = -100  # a target that is not supervised; PyTorch's cross-entropy skips it


M = TypeVar("M", bound="MicroBatch")
Origin = dict[str, Any]  # where a piece of a sequence is from, as JSON


@dataclass(frozen=True)
class MicroBatch:
    """What one backward pass reads: inputs and targets, both (B, T) int64.

    tokens: inputs that are text, not padding.
    segments: (B, T) int64, the number of each token's document within its row, never falling;
    None where a row may be read as one text.
    prompts: (B, T) bool, tokens that are read in both directions; None where none is.
    """

    together: ClassVar[int] = 1  # rows that belong together

    inputs: Tensor
    targets: Tensor
    tokens: int
    segments: Tensor | None = None
    prompts: Tensor | None = None

    @classmethod
    def of(cls, inputs: np.ndarray, targets: np.ndarray, begins: np.ndarray | None = None,
           prompts: np.ndarray | None = None, tokens: int | None = None) -> MicroBatch:
        """From arrays; tokens: None where every one that is text is also supervised.

        begins: (B, T) bool, the inputs at which attention and positions restart.
        """
        return cls(torch.from_numpy(inputs), torch.from_numpy(targets),
                   int((targets != IGNORE).sum()) if tokens is None else tokens,
                   None if begins is None else torch.from_numpy(np.cumsum(begins, axis=1)),
                   None if prompts is None else torch.from_numpy(prompts))

    @property
    def supervised_tokens(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets != IGNORE).sum())

    def cut(self: M, pieces: int) -> list[M]:
        """The same rows in this many portions, or one each; the first one accounts for tokens."""
        rows = -(-len(self.inputs) // (pieces * self.together)) * self.together
        def piece(first: int) -> M:
            return self._each(lambda tensor: tensor[first:first + rows],
                              tokens=self.tokens if first == 0 else 0)

        return [piece(first) for first in range(0, len(self.inputs), rows)]

    def on(self: M, machine: Machine) -> M:
        """The same on the machine's device; of it what this process reads, where several share it.
        """
        part: M = machine.part_of(self)
        return part._each(machine.to_device)

    def _each(self: M, change: Callable[[Tensor], Tensor], **others: int) -> M:
        """The same with each of its tensors changed."""
        tensors = {name: change(value) for name, value in vars(self).items()
                   if isinstance(value, Tensor)}
        return replace(self, **tensors, **others)  # type: ignore[arg-type]


class Sequences(Protocol):
    """Numbered training sequences, each of them read once per epoch."""

    def __len__(self) -> int: ...

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a sequence, on average."""
        ...

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Width of the rows of these numbers, in tokens: what they are padded to side by side."""
        ...

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """The sequences of these numbers, side by side."""
        ...

    def origins(self, number: int) -> list[Origin]:
        """What the sequence of a number is made of."""
        ...


class Endless(Protocol):
    """What training reads at each index: Shuffled sequences, or a Mixture of several such."""

    @property
    def sequences_per_epoch(self) -> int:
        """Distinct sequences."""
        ...

    @property
    def tokens_per_sequence(self) -> float:
        """Tokens of a sequence, on average."""
        ...

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Width of the rows at these indices, in tokens."""
        ...

    def read(self, indices: np.ndarray) -> MicroBatch:
        """The sequences at these indices, side by side."""
        ...

    def origins(self, index: int) -> list[Origin]:
        """What the sequence at an index is made of."""
        ...


class Shuffled:
    """Sequences epoch after epoch, each epoch in an order of its own.

    keys: the seed, and whatever else tells this order from others of the same seed.
    """

    def __init__(self, sequences: Sequences, *keys: int):
        self._sequences, self._keys = sequences, keys
        self.sequences_per_epoch = len(sequences)
        self.tokens_per_sequence = sequences.tokens_per_sequence

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Width of the rows at these indices, in tokens."""
        return self._sequences.lengths(self._numbers(indices))

    def read(self, indices: np.ndarray) -> MicroBatch:
        """The sequences at these indices, side by side."""
        return self._sequences.read(self._numbers(indices))

    def origins(self, index: int) -> list[Origin]:
        """What the sequence at an index is made of."""
        return self._sequences.origins(int(self._numbers(np.array([index]))[0]))

    def _numbers(self, indices: np.ndarray) -> np.ndarray:
        return sequence_order(indices, self.sequences_per_epoch, *self._keys)


class Batches:
    """The global batch of each step, or one rank's share of it, cut into micro-batches.

    most_tokens: of a micro-batch, padding included; None: whatever its sequences have.
    """

    def __init__(self, source: Endless, order: Order, most_tokens: int | None = None):
        self._source, self._order, self._most_tokens = source, order, most_tokens
        self.sequences_per_epoch = source.sequences_per_epoch
        self.tokens_per_sequence = source.tokens_per_sequence

    def step(self, step: int) -> list[MicroBatch]:
        """What one optimizer step reads; sequences of like length together, to pad little.

        The step's loss and gradient do not depend on how it is cut.
        """
        return [self._source.read(indices) for indices in self._indices(step)]

    def origins(self, step: int) -> list[list[list[Origin]]]:
        """What each sequence of each micro-batch of a step is made of."""
        return [[self._source.origins(index) for index in indices.tolist()]
                for indices in self._indices(step)]

    def _indices(self, step: int) -> list[np.ndarray]:
        """Of each micro-batch."""
        indices = self._order.indices(step)
        lengths = self._source.lengths(indices)
        by_length = np.argsort(lengths, kind="stable")
        return [indices[by_length[part]] for part in portions(
            lengths[by_length].tolist(), self._order.micro_batch_size, self._most_tokens)]


class SizedBatches(Protocol):
    """What evaluation reads: a known number of batches, again and again the same."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> MicroBatch: ...
