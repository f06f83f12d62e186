"""Whole documents in one piece, for a tokenizer that may join the two sides of any cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from data.documents.split import Piece


def whole_documents(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """What a document gives to a split, as one piece. A document is in memory as a whole then."""
    parts: list[Piece] = []
    for piece in pieces:
        parts.append(piece)
        if piece.ends or not piece.text:
            yield _joined(parts)
            parts = []


def _joined(parts: list[Piece]) -> Piece:
    """With the place of the last part, after which a preparation is continued."""
    last = parts[-1]
    if len(parts) > 1:
        for part in reversed(parts[:-1]):
            part.tally.add(last.tally)
            last.tally = part.tally
        last.text = "".join(part.text for part in parts)
        last.stored = sum(part.stored for part in parts)
        last.starts = parts[0].starts
    return last
