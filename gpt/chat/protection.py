"""Texts of users, so that no control token's name comes about in what a template makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from gpt.errors import UserError

_DEEPEST = 50  # of groups in a regular expression
# Characters that mean nothing to anybody.
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


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
        self._name = re.compile(f"(?={any_of(names)})(.)", re.DOTALL) if names else None
        firsts = "".join({name[0] for name in names})
        self._first = re.compile(f"[{re.escape(firsts)}]") if names else None

    def protected(self, value: Any, mark: str) -> Any:
        """Texts, also in lists and as names and values of objects, with the mark."""
        return _mapped(value, lambda text: self._protected(text, mark),
                       lambda name: self._spelled_apart(name, mark))

    def could_come_about(self, value: Any) -> bool:
        """Whether a name could be put together from parts of what users say."""
        return self._first is not None and any(map(self._first.search, texts_in(value)))

    def impossible(self, value: Any, mark: str) -> Any:
        """The same where no name can come about: with the mark in place of what names begin with.
        """
        def replaced(text: str) -> str:
            return text if self._first is None else self._first.sub(mark, text)

        return _mapped(value, replaced, replaced)

    def _protected(self, text: str, mark: str) -> str:
        if self._name is None or not text:
            return text
        said = text.strip()  # as much as templates do
        first, _, last = text.partition(said) if said else (text, "", "")
        before = mark if any(said[:n] in self._ends for n in range(1, self._longest)) else ""
        after = mark if any(said[-n:] in self._begins for n in range(1, self._longest)) else ""
        return first + before + self._spelled_apart(said, mark) + after + last

    def _spelled_apart(self, text: str, mark: str) -> str:
        return text if self._name is None else self._name.sub(rf"\1{mark}", text)


def unused(value: Any, template: str, count: int) -> list[str]:
    """So many characters that are nowhere in what users say, nor in a template, also not as JSON
    writes them. Raises UserError if there are too few."""
    whole = "\n".join(chain([template], texts_in(value)))
    used, escaped = set(whole), whole.lower() if "\\u" in whole.lower() else ""
    free = (chr(code) for code in chain(*_PRIVATE) if chr(code) not in used)
    found = list(islice((char for char in free if as_json_has_it(char) not in escaped), count))
    if len(found) < count:
        raise UserError("a conversation holds all characters that mean nothing; take it out")
    return found


def without(mark: str, text: str) -> str:
    """The text without the mark, also where it was written as JSON."""
    return text.replace(mark, "").replace(as_json_has_it(mark), "")


def as_json_has_it(char: str) -> str:
    """A character that is no ASCII, as JSON writes it."""
    return json.dumps(char)[1:-1]


def any_of(names: Iterable[str], depth: int = 0) -> str:
    """A regular expression for any of these names, the longest first; as fast for thousands."""
    by_first: dict[str, list[str]] = {}
    for name in sorted(set(names) - {""}, key=len, reverse=True):
        by_first.setdefault(name[0] if depth < _DEEPEST else name, []).append(name)
    parts = []
    for group in by_first.values():
        least, most = min(group), max(group)
        shared = next((least[:i] for i, char in enumerate(least) if char != most[i]), least)
        rests = [name[len(shared):] for name in group]
        rest = any_of(rests, depth + 1)
        parts.append(re.escape(shared) + (f"(?:{rest})?" if rest and "" in rests else rest))
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})" if parts else ""


def texts_in(value: Any) -> Iterator[str]:
    """All texts of a value, names in objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value:
            yield from texts_in(one)
        if isinstance(value, dict):
            yield from texts_in([*value.values()])


def _mapped(value: Any, change: Any, change_name: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(one, change, change_name) for one in value]
    if isinstance(value, dict):
        return {change_name(name): _mapped(one, change, change_name)
                for name, one in value.items()}
    return value
