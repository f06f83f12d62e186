"""Tokens as people can see them: their text, with signs for what is no text."""

from __future__ import annotations

from collections.abc import Iterable

from gpt.reports.page import Html, element
from gpt.tokenizer import Tokenizer

LONGEST = 200  # characters of one token
_BYTES = range(0xDC80, 0xDD00)  # what "surrogateescape" makes of bytes that are no UTF-8


class Spelling:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._names = {i: name.encode("utf-8", "replace")
                       for name, i in tokenizer.specials.items()}

    def text(self, token: int) -> str:
        """A token by itself; a control token by its name. Raises UserError for what is none."""
        data = self._names.get(token)
        text = visible(self._tokenizer.decode_bytes([token]) if data is None else data)
        return text if len(text) <= LONGEST else text[:LONGEST] + "…"

    def on_one_line(self, token: int) -> str:
        """The same where blanks at its ends could not be seen."""
        return (self.text(token).replace("↵\n", "↵").replace(" ", "␣").replace("\t", "⇥"))

    def spans(self, tokens: Iterable[int]) -> list[Html]:
        """Tokens one after the other, each with its id."""
        return [element("span", self.text(token), class_="token", title=token)
                for token in tokens]


def visible(data: bytes) -> str:
    """Bytes as text: ⟨e2⟩ is a byte of no whole character, ⟨U+200B⟩ one that cannot be seen."""
    return "".join(map(_sign, data.decode("utf-8", "surrogateescape")))


def _sign(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t" or character.isprintable():
        return character
    number = ord(character)
    return f"⟨{number - 0xDC00:02x}⟩" if number in _BYTES else f"⟨U+{number:04X}⟩"
