"""Documents with characters that the tokenizer has no token for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data.documents.corpus import Document
from data.sources.bad_text import BadText
from gpt.tokenizer import Tokenizer


def writable(document: Document, tokenizer: Tokenizer) -> Document:
    """A document as the tokenizer can write it, by the policy for bad text."""
    if tokenizer.unwritable is None:
        return document

    def pieces(bad_text: BadText) -> Iterator[str]:
        if bad_text.policy == "skip" and (found := _first_problem(document, tokenizer)):
            bad_text.skipped(document.file.path, *found)
            return
        noted = False
        for piece in document.pieces(bad_text):
            if not noted and tokenizer.unwritable_in(piece):
                noted = True
                found = _first_problem(document, tokenizer)
                assert found is not None
                bad_text.replaced(document.file.path, *found)
            yield tokenizer.writable(piece)

    return replace(document, pieces=pieces)


def _first_problem(document: Document, tokenizer: Tokenizer) -> tuple[int, str] | None:
    """(line of a text, or number of a record; what is wrong there)"""
    line = 1
    for piece in document.pieces(BadText("replace")):
        if found := tokenizer.unwritable_in(piece):
            place, problem = found
            return document.number or line + piece.count("\n", 0, place), problem
        line += piece.count("\n")
    return None
