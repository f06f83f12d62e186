"""Which text is held out for validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data.recipe import Recipe
from data.sources import BadText, Document, read_pieces
from gpt.holdout import held_out_names

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Piece:
    """A stretch of one document's text, and whether the document starts or ends with it."""

    split: Split
    text: str
    starts: bool
    ends: bool


class SplitPlan:
    """Decides for every stretch of a corpus where it goes, before any of it is read."""

    def __init__(self, recipe: Recipe, documents: Sequence[Document]):
        self.documents = documents
        self.bytes = sum(document.size for document in documents)
        by_tail = recipe.split == "tail" or (recipe.split == "auto" and len(documents) == 1)
        self._cut = int(self.bytes * (1 - recipe.val_fraction)) if by_tail else None
        self._held_out = held_out_names([d.name for d in documents], recipe.val_fraction,
                                        recipe.seed)

    def pieces(self, bad_text: BadText) -> Iterator[Piece]:
        """The whole corpus in order."""
        return _mark_edges(self._parts(bad_text))

    def _parts(self, bad_text: BadText) -> Iterator[tuple[int, Split, str]]:
        """(document number, split, text)"""
        position = 0  # bytes before the current text
        for number, document in enumerate(self.documents):
            named: Split = "val" if document.name in self._held_out else "train"
            for text in read_pieces(document, bad_text):
                if self._cut is None:
                    yield number, named, text
                    continue
                data = text.encode()
                head = data[:max(0, self._cut - position)].decode(errors="ignore")
                position += len(data)
                if head:
                    yield number, "train", head
                if len(head) < len(text):
                    yield number, "val", text[len(head):]


def _mark_edges(parts: Iterable[tuple[int, Split, str]]) -> Iterator[Piece]:
    """Notice where a document (or its share of a split) starts and ends."""
    previous: tuple[int, Split, str] | None = None
    starts = True
    for part in parts:
        if previous is not None:
            ends = part[:2] != previous[:2]
            yield Piece(previous[1], previous[2], starts, ends)
            starts = ends
        previous = part
    if previous is not None:
        yield Piece(previous[1], previous[2], starts, ends=True)
