"""A text with control tokens in it as token ids, and which of these stand in a stretch of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from gpt.chat.protection import any_of, without
from gpt.tokenizer import BLANKS, Tokenizer

Span = tuple[int, int]  # characters
Encoder = Callable[[int], list[int]]


class Segment(NamedTuple):
    """Characters from start on: a control token's name, or text between two of them."""

    start: int
    text: str
    control: bool


class Segments:
    """Takes texts apart at the names of control tokens, and encodes them as Hugging Face's
    tokenizers do: text is encoded whole between two of them."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ids = tokenizer, tokenizer.specials
        self._stripping = tokenizer.stripping
        self._controls = re.compile(f"({any_of(self._ids)})")

    def of(self, text: str) -> list[Segment]:
        """The segments of a text."""
        found, place = [], 0
        for number, part in enumerate(self._controls.split(text)):
            if part:
                found.append(Segment(place, part, control=number % 2 == 1))
            place += len(part)
        return found

    def encode(self, text: str, mark: str, spans: Sequence[Span] = ()
               ) -> tuple[list[int], list[bool]]:
        """(token ids of a text, whether each is in one of the spans)

        mark: a character that stands for nothing. A token that a span begins within is one of it.
        """
        ids: list[int] = []
        inside: list[bool] = []
        for segment, encoded in self._encoders(self.of(text), mark):
            own = encoded(len(segment.text))
            marks = [False] * len(own)
            for start, stop in spans:
                if start < segment.start + len(segment.text) and stop > segment.start:
                    first, last = (_begun(own, encoded, segment, place) for place in (start, stop))
                    marks[first:last] = [True] * max(0, last - first)
            ids += own
            inside += marks
        return ids, inside

    def _encoders(self, segments: Sequence[Segment], mark: str
                  ) -> Iterator[tuple[Segment, Encoder]]:
        """Each segment, and what encodes its first characters."""
        neighbours = zip([None, *segments], segments, [*segments[1:], None], strict=False)
        for before, segment, behind in neighbours:
            if segment.control:
                yield segment, partial(self._control, segment)
                continue
            left = before is not None and self._strips(before)[1]
            right = behind is not None and self._strips(behind)[0]
            encode = (self._tokenizer.encode if before is None
                      else self._tokenizer.encode_after_control)
            yield segment, partial(_encoded, segment, mark, encode, left, right)

    def _control(self, segment: Segment, length: int) -> list[int]:
        return [self._ids[segment.text]]

    def _strips(self, segment: Segment) -> tuple[bool, bool]:
        return self._stripping.get(segment.text, (False, False))


def _encoded(segment: Segment, mark: str, encode: Callable[[str], list[int]], left: bool,
             right: bool, length: int) -> list[int]:
    """The first characters of a text, without the blanks that its neighbours take away."""
    text = without(mark, segment.text[:length])
    text = text.lstrip(BLANKS) if left else text
    text = text.rstrip(BLANKS) if right and length == len(segment.text) else text
    return encode(text) if text else []


def _begun(ids: list[int], encoded: Encoder, segment: Segment, place: int) -> int:
    """How many of a segment's tokens stand before a place in the whole text."""
    length = place - segment.start
    if 0 < length < len(segment.text):
        return _alike(ids, encoded(length))
    return len(ids) if length > 0 else 0


def _alike(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many they begin alike with."""
    return next((i for i, (one, other) in enumerate(zip(ids, others, strict=False))
                 if one != other), min(len(ids), len(others)))
