"""Text in another encoding as UTF-8, which is what all that reads text expects."""

from __future__ import annotations

import codecs
import io
import re
from typing import Any

_BLOCK_BYTES = 1 << 17
_LACKING = "corpus_lacking"  # name of the error handler below


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end  # which surrogateescape writes as the byte ff


codecs.register_error(_LACKING, _mark)


class Transcoded(io.RawIOBase):
    """A stream as UTF-8. Bytes that its encoding lacks become ff, which UTF-8 lacks.

    So they are bad text wherever text is read, and a byte order mark is one of UTF-8 or gone.
    """

    def __init__(self, stream: Any, encoding: str):
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(_LACKING)
        self._output = memoryview(b"")

    def readable(self) -> bool:
        """As io.RawIOBase has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end."""
        while not self._output:
            data = self._stream.read(_BLOCK_BYTES)
            text = self._decoder.decode(data, final=not data)
            if not data and not text:
                return 0
            self._output = memoryview(text.encode("utf-8", "surrogateescape"))
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def in_terms_of(encoding: str, problem: str) -> str:
    """What was found in text that was made UTF-8, said of what it was."""
    if encoding == "utf-8":
        return problem
    return re.sub(r"the text is not UTF-8( \([^)]*\))?", f"the text is not {encoding}", problem)
