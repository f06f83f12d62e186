"""A record's fields, and what is said when one of them is wrong."""

from __future__ import annotations

import difflib
from functools import lru_cache
from itertools import islice
from typing import Any

from gpt.errors import UserError

MOST_NAMES = 1000  # of fields, among which slips of the pen are looked for: it takes long
_NOT_TEXT = ("images", "videos", "audios", "image", "audio")


class Fields:
    """The fields of a record or of a message, and the words for what is wrong with one.

    Null is as good as no field: tables have it where a record lacks what others have.
    """

    def __init__(self, value: Any, where: str):
        if not isinstance(value, dict):
            raise UserError(f"{where} is {kind_of(value)}; it must be an object with named fields")
        self.values: dict[str, Any] = value
        self.where = where

    def get(self, name: str) -> Any:
        """A field of any kind; None where there is none."""
        return self.values.get(name)

    def text(self, name: str) -> str:
        """A field that must be text."""
        if name not in self.values:
            raise self.missing(name)
        if not isinstance(self.values[name], str):
            raise self.wrong(name, f"is {kind_of(self.values[name])}; it must be text")
        return self.values[name]

    def optional_text(self, name: str) -> str:
        """A text; "" where there is none."""
        return "" if self.get(name) is None else self.text(name)

    def full_text(self, name: str) -> str:
        """A text that is more than white space."""
        if not (text := self.text(name)).strip():
            raise self.wrong(name, "is empty; write something there, or take the record out")
        return text

    def wrong(self, name: str, problem: str) -> UserError:
        """What to raise about a field."""
        return UserError(f"{self.where}: {name} {problem}")

    def missing(self, name: str) -> UserError:
        """What to raise where a field is needed."""
        near = difflib.get_close_matches(name, list(self.values)[:MOST_NAMES], 1, 0.7)
        advice = f"is {shown(near[0])} meant to be it? Rename it" if near else "add it"
        return self.wrong(name, f"is missing (the fields are {self}); {advice}")

    def refuse_near(self, optional: tuple[str, ...]) -> None:
        """Refuse a field whose name is nearly that of an optional one."""
        for name in islice(self.values, MOST_NAMES):
            near = _nearly(name, optional)
            if near is not None and near not in self.values:
                raise UserError(f"{self.where}: the field {shown(name)} means nothing here; "
                                f"rename it to {near}, or take it out")

    def refuse_what_is_not_text(self) -> None:
        """Refuse pictures and sound, unless there are none in them."""
        for name in _NOT_TEXT:
            if self.holds(name):
                raise self.wrong(name, "cannot be learned, only text can; take such records out")

    def holds(self, name: str) -> bool:
        """Whether something is in a field that lists things; numbers count what is elsewhere."""
        value = self.get(name)
        return isinstance(value, str | list | dict) and value not in ("", "[]", [], {})

    def __str__(self) -> str:
        names = ", ".join(map(shown, list(self.values)[:8])) or "none"
        return names + (", …" if len(self.values) > 8 else "")


@lru_cache(maxsize=1024)
def _nearly(name: str, known: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(name, known, 1, 0.8)
    is_slip = near and name != near[0] and abs(len(name) - len(near[0])) <= 1
    return near[0] if is_slip else None


def shown(word: str) -> str:
    """A word of the user's, on one line and not too long."""
    return word[:40] if word[:40].isprintable() else ascii(word[:40])


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
             float: "a number", type(None): "null"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
