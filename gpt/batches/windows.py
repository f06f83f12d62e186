"""Continuous windows over a token stream, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt.batches.batch import IGNORE, MicroBatch, Origin
from gpt.batches.text import TokenizedText
from gpt.errors import UserError


class Windows:
    """Training sequences: consecutive windows of block_size tokens over the whole stream.

    The last window is moved back to end with the stream, so every token is read in every epoch.
    isolate: attention and positions restart where a document does.
    """

    def __init__(self, text: TokenizedText, block_size: int, isolate: bool = False):
        if len(text) <= block_size:
            raise UserError(f"{text.name} has {len(text)} tokens, fewer than one sequence of "
                            f"model.block_size + 1 = {block_size + 1}; give more text or a smaller "
                            "model.block_size")
        self._text, self._block_size, self._isolate = text, block_size, isolate
        self.tokens_per_sequence = float(block_size)

    def __len__(self) -> int:
        return -(-(len(self._text) - 1) // self._block_size)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Alike."""
        return np.full(len(numbers), self._block_size)

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """Windows side by side; each target is the token after its input."""
        tokens = np.stack([self._text.read(*self._span(number))
                           for number in numbers.tolist()])           # (B, T + 1)
        inputs = tokens[:, :-1]
        begins = inputs == self._text.end_of_text if self._isolate else None
        return MicroBatch.of(inputs, tokens[:, 1:], begins)

    def origins(self, number: int) -> list[Origin]:
        """Where a window stands in the text."""
        return [self._text.origin(*self._span(number))]

    def _span(self, number: int) -> tuple[int, int]:
        start = min(number * self._block_size, len(self._text) - 1 - self._block_size)
        return start, start + self._block_size + 1


class EvaluationWindows:
    """The stream once, in order, every token a target exactly once, in batches.

    max_tokens: score evenly spaced windows of about that many tokens; None scores all.
    isolate: attention and positions restart where a document does.
    """

    def __init__(self, text: TokenizedText, block_size: int, batch_size: int,
                 max_tokens: int | None = None, isolate: bool = False):
        self._text, self._block_size, self._isolate = text, block_size, isolate
        starts: Sequence[int] = range(0, len(text), block_size)
        if max_tokens is not None and max_tokens < len(text):
            wanted = max(1, max_tokens // block_size)
            starts = [starts[i * len(starts) // wanted] for i in range(wanted)]
        self._batches = [starts[i:i + batch_size] for i in range(0, len(starts), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> MicroBatch:
        return self._read(self._batches[number])

    def _read(self, starts: Sequence[int]) -> MicroBatch:
        """Windows side by side, filled up at the stream's end as far as the longest of them."""
        stops = [min(start + self._block_size, len(self._text)) for start in starts]
        width = max(stop - start for start, stop in zip(starts, stops, strict=True))
        inputs = np.full((len(starts), width), self._text.end_of_text)
        targets = np.full_like(inputs, IGNORE)
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            tokens = self._text.read(start - 1, stop)
            inputs[row, :len(tokens) - 1] = tokens[:-1]
            targets[row, :len(tokens) - 1] = tokens[1:]
        begins = inputs == self._text.end_of_text if self._isolate else None
        return MicroBatch.of(inputs, targets, begins)
