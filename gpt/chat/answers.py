"""Where an answer stands in what a template writes: behind what asks for it, up to what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpt.chat.segments import Segments, Span


class Answer(NamedTuple):
    """row: what is read before an answer, and the answer. span: its characters there, with what
    ends it.

    opens: the template writes the conversation as the row is, so that it begins with what asks for
    the answer. ends: with a control token, the one that ends answers.
    """

    row: str
    span: Span
    opens: bool
    ends: bool


def answer_in(text: str, asked: str, behind: int, segments: Segments, stop: str | None,
              tails: Callable[[], tuple[str, str]]) -> Answer:
    """An answer in a rendering that ends with it.

    asked: the rendering of what stands before, with what asks for an answer. behind: how many
    characters of the text follow the answer's own words. stop: the control token that ends answers;
    None: the first one. tails: what follows the last words before the answer, in `asked` and in
    `text`.
    """
    controls = [one for one in segments.of(text) if one.control]
    stops = [one for one in controls if one.start >= len(text) - behind]
    last = next((one for one in stops if stop in (None, one.text)), stops[-1] if stops else None)
    end = len(text) if last is None else last.start + len(last.text)
    ends = last is not None and stop in (None, last.text)
    if text.startswith(asked):
        return Answer(text, (len(asked), end), True, ends)
    asks, answers = tails()
    read, begin = _parting(asks, answers, segments)
    start = len(text) - len(answers) + begin
    before = asked[:len(asked) - len(asks) + read]
    return Answer(before + text[start:], (len(before), len(before) + end - start), False, ends)


def _parting(asks: str, answers: str, segments: Segments) -> tuple[int, int]:
    """(how much of what asks is read before an answer, where this begins in what answers)"""
    if answers.startswith(asks):
        return len(asks), len(asks)
    headers = [one.start for one in segments.of(asks) if one.control]
    header = asks[headers[-1]:] if headers else ""
    if header and header in answers:
        return len(asks), answers.index(header) + len(header)
    # As far as they are alike, to the beginning of a line or behind a control token.
    same = alike(asks, answers)
    ends = [one.start + len(one.text) for one in segments.of(answers) if one.control]
    place = max([0, answers.rfind("\n", 0, same) + 1, *(end for end in ends if end <= same)])
    return place, place


def alike(text: str, other: str) -> int:
    """How many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
                min(len(text), len(other)))
