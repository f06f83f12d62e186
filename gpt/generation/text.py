"""From tokens to text as it grows: whole characters only, and nothing beyond a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of tokens into text that can be shown at once.

    A character whose bytes are spread over tokens appears when it is complete. Text that may turn
    out to be the beginning of a stop text waits; a stop text itself is never shown and ends it all.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped = False  # a stop text was found

    def push(self, piece: bytes, may_stop: bool = True) -> str:
        """What can be shown now. may_stop: whether stop texts that this completes count."""
        assert not self.stopped, "nothing follows a stop text"
        old = len(self._waiting)  # what it holds complete did not count
        self._waiting += self._decoder.decode(piece)
        found = [at for text in self._stop
                 if (at := self._waiting.find(text, max(0, old + 1 - len(text)))) >= 0]
        if found and may_stop:
            self.stopped = True
            return self._waiting[:min(found)]
        kept = max((_overlap(self._waiting, text) for text in self._stop), default=0)
        return self._take(len(self._waiting) - kept)

    def finish(self) -> str:
        """What was still waiting, when nothing follows."""
        if self.stopped:
            return ""
        return self._take(len(self._waiting)) + self._decoder.decode(b"", final=True)

    def _take(self, length: int) -> str:
        ready, self._waiting = self._waiting[:length], self._waiting[length:]
        return ready


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of text could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
