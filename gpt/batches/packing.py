"""Packing pieces of text into rows of one length, so that little of a row is padding.

Best-fit-decreasing bin packing over the histogram of lengths: pieces of one length are alike, so
whole groups of alike rows are filled at once, and the work grows with the number of distinct
lengths rather than of pieces.
Source: Krell et al. 2021, arXiv:2107.02027.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Which pieces share which row: pieces[firsts[r]:firsts[r + 1]] are those of row r."""

    pieces: np.ndarray  # (pieces,) numbers of pieces, row after row
    firsts: np.ndarray  # (rows + 1,)

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def row(self, number: int) -> np.ndarray:
        """The pieces of one row, longest first."""
        return self.pieces[self.firsts[number]:self.firsts[number + 1]]


class Alike(NamedTuple):
    """Rows that hold the same lengths, each with room for so many tokens more.

    rows: how many. contents: (length, how many pieces of it) in each row, longest first.
    """

    rows: int
    room: int
    contents: tuple[tuple[int, int], ...]


def pack(lengths: np.ndarray, capacity: int) -> Packing:
    """Share out pieces among as few rows as best-fit-decreasing finds.

    lengths: (pieces,) tokens of each, 1 to capacity. The same lengths always give the same rows.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"pieces of {lengths.min()} to {lengths.max()} tokens do not all fit into "
                         f"rows of 1 to {capacity}")
    counts = np.bincount(lengths, minlength=capacity + 1)
    plan = best_fit(counts, capacity)
    pieces_per_row = np.repeat(
        np.array([sum(count for _, count in alike.contents) for alike in plan], dtype=np.int64),
        [alike.rows for alike in plan])
    return Packing(_assigned(plan, lengths, counts), np.append(0, np.cumsum(pieces_per_row)))


def best_fit(counts: np.ndarray, capacity: int) -> list[Alike]:
    """Rows for counts[n] pieces of each length n, by best-fit-decreasing.

    Each length, from the longest down, goes where it leaves the least room.
    """
    shelf = _Shelf()
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            alike = shelf.take(length) or Alike(left, capacity, ())
            each = min(left, alike.room // length)  # the row just added to is the next best fit
            rows = min(alike.rows, left // each)
            left -= rows * each
            shelf.put(alike._replace(rows=alike.rows - rows))
            shelf.put(Alike(rows, alike.room - each * length, (*alike.contents, (length, each))))
    return list(shelf)


class _Shelf:
    """Rows by the room they have left."""

    def __init__(self) -> None:
        self._alike: dict[int, list[Alike]] = {}
        self._rooms: list[int] = []  # the keys above, ascending

    def put(self, alike: Alike) -> None:
        """Add rows, unless they are none or hold nothing."""
        if not alike.rows or not alike.contents:
            return
        if alike.room not in self._alike:
            bisect.insort(self._rooms, alike.room)
        self._alike.setdefault(alike.room, []).append(alike)

    def take(self, length: int) -> Alike | None:
        """Remove and return rows with the least room for a length; None if no row has any."""
        place = bisect.bisect_left(self._rooms, length)
        if place == len(self._rooms):
            return None
        room = self._rooms[place]
        alike = self._alike[room].pop()
        if not self._alike[room]:
            del self._alike[room], self._rooms[place]
        return alike

    def __iter__(self) -> Iterator[Alike]:
        for room in self._rooms:
            yield from self._alike[room]


def _assigned(plan: list[Alike], lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Numbers of actual pieces, row after row; pieces of one length are used up in their order."""
    # Numpy sorts 16-bit keys in linear time.
    by_length = np.argsort(lengths.astype(np.min_scalar_type(len(counts))), kind="stable")
    used = (np.cumsum(counts) - counts).tolist()  # where each length's next piece stands
    pieces = np.empty(len(lengths), dtype=np.min_scalar_type(len(lengths)))
    filled = 0
    for alike in plan:
        columns = []
        for length, each in alike.contents:
            first, used[length] = used[length], used[length] + alike.rows * each
            columns.append(by_length[first:used[length]].reshape(alike.rows, each))
        block = np.concatenate(columns, axis=1).ravel()
        pieces[filled:filled + len(block)] = block
        filled += len(block)
    return pieces
