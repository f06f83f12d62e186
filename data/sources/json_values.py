"""A file of JSON as a stream of values: the items of an array, or values one after the other.

Values are read by the standard library from a window on the file, so that of a file of any size
one value is in memory, and that is bounded too.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from data.sources.streams import BLOCK_BYTES, BrokenFile, read_block

_BLANKS = re.compile(r"[ \t\r\n]*")
_read_value = json.JSONDecoder().raw_decode


class JsonValues:
    """Iterates over (line, value). Bytes that are not UTF-8 become lone surrogates (PEP 383).

    Raises BrokenFile where the file is not JSON, or a value is longer than `most` characters.
    """

    def __init__(self, stream: BinaryIO, most: int):
        self._stream, self._most = stream, most
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._at, self._line = "", 0, 1

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while character := self._peek():
            if character == "[":
                yield from self._items()
            else:
                yield self._value()

    def _items(self) -> Iterator[tuple[int, Any]]:
        separator = self._take()
        while self._peek() != "]" or separator == ",":
            yield self._value()
            if self._peek() != ",":
                break
            separator = self._take()
        if self._peek() != "]":
            raise self._broken("an array goes on with ',' or ends with ']'")
        self._take()

    def _peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            self._move(_BLANKS.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more():
                return self._text[self._at:self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _value(self) -> tuple[int, Any]:
        self._peek()
        while True:
            try:
                value, end = _read_value(self._text, self._at)
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except ValueError as error:
                ahead = getattr(error, "pos", self._at) - self._at
                if self._more_of_a_value():
                    continue
                raise self._broken(getattr(error, "msg", str(error)), ahead) from None
            is_closed = self._text[end - 1] in '}]"' or end <= len(self._text) - len("e+1")
            if is_closed or not self._more_of_a_value():  # a number may go on
                line = self._line
                self._move(end)
                return line, value

    def _more_of_a_value(self) -> bool:
        if len(self._text) - self._at > self._most:
            raise self._broken(f"a record is longer than {self._most >> 20} MiB")
        return self._more()

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read on, twice as far while a value has no end; whether there was anything."""
        data = read_block(self._stream, max(BLOCK_BYTES, len(self._text) - self._at))
        new = self._decoder.decode(data, final=not data)
        if new:
            self._text, self._at = self._text[self._at:] + new, 0
        return bool(data or new)

    def _broken(self, problem: str, ahead: int = 0) -> BrokenFile:
        line = self._line + self._text.count("\n", self._at, self._at + ahead)
        return BrokenFile(f"it is not valid JSON ({problem})", line)
