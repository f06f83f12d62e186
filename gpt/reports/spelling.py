"""Tokens as people can see them: their text, with signs for what is no text."""

from __future__ import annotations

from collections.abc import Iterable

from gpt.reports.page import Html, element
from gpt.tokenizer import Tokenizer

LONGEST = 200  # characters of one token
_BYTES = range(0xDC80, 0xDD00)  # what "surrogateescape" makes of bytes that are no UTF-8


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, a control token by its name. Raises UserError for an id that is none."""
    text = visible(tokenizer.decode_bytes([token]))
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def on_one_line(tokenizer: Tokenizer, token: int) -> str:
    """The same with signs for blanks, too, which could not be seen at its ends."""
    text = spelled(tokenizer, token).replace("↵\n", "↵")
    return text.replace(" ", "␣").replace("\t", "⇥")


def spans(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[Html]:
    """Tokens one after the other, each with its id."""
    return [element("span", spelled(tokenizer, token), class_="token", title=token)
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
