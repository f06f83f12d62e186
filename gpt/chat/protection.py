"""Texts of users, so that no control token's name comes about in what a template makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

PRIVATE = range(0xE000, 0xF900)  # characters that mean nothing to anybody


class Protection:
    """A mark that breaks names apart, and is taken out again behind the template.

    It stands inside each name that a text spells, and between a text that ends as a name begins,
    or begins as a name ends, and its neighbours. All else stays as it is, so that templates which
    trim texts or look into them do what they always do.
    """

    def __init__(self, names: Iterable[str]):
        names = [name for name in names if len(name) > 1]
        self._begins = {name[:n] for name in names for n in range(1, len(name))}
        self._ends = {name[n:] for name in names for n in range(1, len(name))}
        self._longest = max(map(len, names), default=0)
        whole = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._name = re.compile(f"(?={whole})(.)", re.DOTALL) if names else None

    def mark_for(self, value: Any, template: str) -> str:
        """A character that is nowhere in what is to be protected, nor in the template."""
        used = set(template).union(*_texts(value))
        return next(chr(code) for code in PRIVATE if chr(code) not in used)

    def protected(self, value: Any, mark: str) -> Any:
        """Texts, also in lists and as values of objects, with the mark."""
        if isinstance(value, str):
            return self._protected(value, mark)
        if isinstance(value, list):
            return [self.protected(one, mark) for one in value]
        if isinstance(value, dict):
            return {self._spelled_apart(name, mark): self.protected(one, mark)
                    for name, one in value.items()}
        return value

    def _spelled_apart(self, text: str, mark: str) -> str:
        return text if self._name is None else self._name.sub(rf"\1{mark}", text)

    def _protected(self, text: str, mark: str) -> str:
        if self._name is None or not text:
            return text
        said = text.strip()  # as much as templates do
        first, _, last = text.partition(said) if said else (text, "", "")
        before = mark if any(said[:n] in self._ends for n in range(1, self._longest)) else ""
        after = mark if any(said[-n:] in self._begins for n in range(1, self._longest)) else ""
        return first + before + self._spelled_apart(said, mark) + after + last


def without(mark: str, text: str) -> str:
    """The text without the mark, also where it was written as JSON."""
    return text.replace(mark, "").replace(json.dumps(mark)[1:-1], "")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value:
            yield from _texts(one)  # of an object, the names
        if isinstance(value, dict):
            yield from _texts([*value.values()])
