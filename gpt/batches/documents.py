"""Training rows that hold whole documents, as long as these fit."""

from __future__ import annotations

import numpy as np

from gpt.batches.batch import IGNORE, MicroBatch, Origin
from gpt.batches.packing import pack
from gpt.batches.text import TokenizedText
from gpt.errors import UserError


class DocumentRows:
    """Training sequences: rows of block_size targets, packed with documents.

    A document's targets are its tokens and the end-of-text behind it; its first is predicted from
    the end-of-text before it. A document of more than block_size targets fills rows of its own,
    each going on from the token before it, and what remains is packed like a short one. So every
    token is a target once per epoch. The rest of a row is end-of-text inputs without a target.

    isolate: attention and positions restart at every document, or piece of one.
    """

    def __init__(self, text: TokenizedText, block_size: int, isolate: bool = False):
        if not len(text):
            raise UserError(f"{text.name} has no tokens; give more text")
        self._text, self._block_size, self._isolate = text, block_size, isolate
        starts = text.stream.document_starts
        assert len(starts) and starts[0] == 0, "every token belongs to a document"
        lengths = np.diff(starts, append=len(text))
        full, rest = np.divmod(lengths, block_size)
        self._plan_full_rows(starts, full)
        self._plan_packed_rows(starts + full * block_size, rest)

    def _plan_full_rows(self, starts: np.ndarray, full: np.ndarray) -> None:
        """Rows 0 to F - 1, each filled by a chunk of a long document."""
        (long,) = full.nonzero()
        self._long_starts = starts[long]
        self._long_stops = np.cumsum(full[long])  # the row after each document's last full one
        self._long_firsts = self._long_stops - full[long]
        self._full_rows = int(full.sum())

    def _plan_packed_rows(self, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Rows from F on, shared by what is left of each document: piece p stands at starts[p]."""
        (pieces,) = lengths.nonzero()
        packing = pack(lengths[pieces], self._block_size)
        pieces = pieces[packing.pieces]
        self._piece_starts = starts[pieces]
        self._piece_lengths = lengths[pieces].astype(np.min_scalar_type(self._block_size))
        self._piece_firsts = packing.firsts

    def __len__(self) -> int:
        return self._full_rows + len(self._piece_firsts) - 1

    @property
    def tokens_per_sequence(self) -> float:
        """Targets of a row, on average."""
        return len(self._text) / len(self)

    @property
    def padding(self) -> float:
        """The share of all rows that is no text."""
        return 1 - self.tokens_per_sequence / self._block_size

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Alike."""
        return np.full(len(numbers), self._block_size)

    def read(self, numbers: np.ndarray) -> MicroBatch:
        """Rows side by side."""
        shape = (len(numbers), self._block_size)
        inputs = np.full(shape, self._text.end_of_text)
        targets, begins = np.full(shape, IGNORE), np.ones(shape, dtype=bool)
        for row, number in enumerate(numbers.tolist()):
            place = 0
            for start, length in self.spans(number):
                tokens, end = self._text.read(start - 1, start + length), place + length
                inputs[row, place:end], targets[row, place:end] = tokens[:-1], tokens[1:]
                begins[row, place + 1:end] = False
                place = end
        return MicroBatch.of(inputs, targets, begins if self._isolate else None)

    def origins(self, number: int) -> list[Origin]:
        """Where the documents of a row, or pieces of them, stand in the text."""
        return [self._text.origin(start, start + length) for start, length in self.spans(number)]

    def spans(self, number: int) -> list[tuple[int, int]]:
        """Where in the stream a row's targets stand: (first token, how many)."""
        if number < self._full_rows:
            document = int(np.searchsorted(self._long_stops, number, side="right"))
            chunk = number - int(self._long_firsts[document])
            return [(int(self._long_starts[document]) + chunk * self._block_size,
                     self._block_size)]
        here = slice(*self._piece_firsts[number - self._full_rows:][:2])
        return list(zip(self._piece_starts[here].tolist(), self._piece_lengths[here].tolist(),
                        strict=True))
